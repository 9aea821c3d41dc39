-- Fills public.audit_log with invented hospital events in the spirit of FHIR's AuditEvent. No real person, address or
-- organisation occurs in it. Variables (psql -v events=1000 ..., or \set before \i):
--   events         ordinary events, spread over the last months         200000
--   months         how far back they reach                              18
--   seed           another seed, another hospital                       42
--   past_events    imported from older systems, 9 to 25 years ago       30
--   future_events  from devices whose clocks are wrong, 14 months to 6 years ahead   20
-- Everything is a hash of (seed, number of the event, purpose), so the same seed gives the same events on every
-- server and under every plan; only their times move along with now(). Times are UTC.
\if :{?events}
\else
\set events 200000
\endif
\if :{?months}
\else
\set months 18
\endif
\if :{?seed}
\else
\set seed 42
\endif
\if :{?past_events}
\else
\set past_events 30
\endif
\if :{?future_events}
\else
\set future_events 20
\endif

-- Parallel plans and JIT would only add noise to the loading time.
SET jit = off;

WITH
-- What happens in a hospital: how often, on what, by whom, how often it fails and how sensitive it is.
actions (n, action, weight, resource_type, actor, failure_rate, classification, interaction, failure) AS (
    VALUES
        (1, 'patient.read', 250, 'Patient', 'practitioner', 0.010, 'PHI', 'read', 'no treatment relation to this patient'),
        (2, 'record.read', 165, 'Observation', 'practitioner', 0.008, 'PHI', 'read', 'no treatment relation to this patient'),
        (3, 'labresult.read', 80, 'DiagnosticReport', 'practitioner', 0.006, 'PHI', 'read', 'result is not released yet'),
        (4, 'record.update', 75, 'Observation', 'practitioner', 0.020, 'PHI', 'update', 'record was changed by someone else'),
        (5, 'medication.read', 70, 'MedicationRequest', 'practitioner', 0.005, 'PHI', 'read', 'no treatment relation to this patient'),
        (6, 'record.create', 60, 'Encounter', 'practitioner', 0.012, 'PHI', 'create', 'a required element is missing'),
        (7, 'user.login', 46, 'Practitioner', 'practitioner', 0.045, 'internal', 'login', 'invalid credentials'),
        (8, 'medication.prescribe', 40, 'MedicationRequest', 'practitioner', 0.030, 'PHI', 'create', 'interaction check refused the order'),
        (9, 'interface.message', 40, 'Bundle', 'system', 0.015, 'PHI', 'batch', 'receiver did not acknowledge'),
        (10, 'labresult.create', 35, 'DiagnosticReport', 'system', 0.010, 'PHI', 'create', 'order number is unknown'),
        (11, 'document.read', 30, 'DocumentReference', 'practitioner', 0.008, 'PHI', 'read', 'no treatment relation to this patient'),
        (12, 'portal.login', 28, 'Person', 'patient', 0.080, 'PII', 'login', 'invalid credentials'),
        (13, 'user.logout', 26, 'Practitioner', 'practitioner', 0.000, 'internal', 'logout', ''),
        (14, 'imaging.view', 25, 'ImagingStudy', 'practitioner', 0.015, 'PHI', 'read', 'image archive did not answer'),
        (15, 'appointment.read', 24, 'Appointment', 'patient', 0.004, 'PII', 'read', 'session has expired'),
        (16, 'appointment.create', 14, 'Appointment', 'patient', 0.025, 'PII', 'create', 'slot is no longer free'),
        (17, 'document.sign', 14, 'DocumentReference', 'practitioner', 0.010, 'PHI', 'update', 'signature card is not readable'),
        (18, 'consent.update', 6, 'Consent', 'patient', 0.010, 'PII', 'update', 'session has expired'),
        (19, 'record.export', 4, 'Bundle', 'practitioner', 0.090, 'PHI', 'search', 'export was not approved'),
        (20, 'access.emergency', 3, 'Patient', 'practitioner', 0.000, 'PHI', 'read', ''),
        (21, 'role.grant', 2, 'PractitionerRole', 'admin', 0.050, 'internal', 'update', 'four-eyes approval is missing'),
        (22, 'config.update', 2, 'Device', 'admin', 0.030, 'internal', 'update', 'value is out of range'),
        (23, 'record.delete', 1, 'Observation', 'admin', 0.200, 'PHI', 'delete', 'record is under legal hold')
),
-- Upper bounds of each action's share of 0..1, for width_bucket.
shares (bounds) AS (
    SELECT array_agg(upto ORDER BY n)
    FROM (SELECT n, sum(weight) OVER (ORDER BY n)::float8 / sum(weight) OVER () AS upto FROM actions) s
),
-- The same for the hours of a day: rounds in the morning, a dip at noon, a quiet night.
hours (bounds) AS (
    SELECT array_agg(upto ORDER BY h)
    FROM (
        SELECT h, sum(w) OVER (ORDER BY h)::float8 / sum(w) OVER () AS upto
        FROM unnest('{3,2,2,2,2,4,9,28,52,60,58,50,36,46,52,48,40,28,18,14,11,9,6,4}'::int[])
            WITH ORDINALITY AS d (w, h)
    ) s
),
span (ends, starts, days) AS (
    SELECT u, u - make_interval(months => :months), u::date - (u - make_interval(months => :months))::date
    FROM (SELECT now() AT TIME ZONE 'UTC') t (u)
),
-- Random numbers, 0 <= u < 1: one hash for each event and purpose.
ordinary AS (
    SELECT i, 'ordinary' AS origin,
        span.ends::date
            - floor(((hashint8extended(i, :seed * 100 + 1) & 9007199254740991) / 9007199254740992.0::float8) * span.days)::int
            AS day,
        (hashint8extended(i, :seed * 100 + 2) & 9007199254740991) / 9007199254740992.0::float8 AS u_hour,
        (hashint8extended(i, :seed * 100 + 3) & 9007199254740991) / 9007199254740992.0::float8 AS u_within,
        (hashint8extended(i, :seed * 100 + 4) & 9007199254740991) / 9007199254740992.0::float8 AS u_weekend
    FROM generate_series(1, :events) i, span
),
timed AS (
    SELECT i, origin,
        CASE
            -- Today's later hours have not happened yet.
            WHEN at > span.ends THEN at - interval '7 days'
            WHEN at < span.starts THEN at + interval '7 days'
            ELSE at
        END AS at
    FROM (
        SELECT i, origin,
            -- Half of a weekend's events belong to the working days before it.
            day - CASE
                    WHEN extract(isodow FROM day) >= 6 AND u_weekend < 0.5
                        THEN extract(isodow FROM day)::int - 5 + floor(u_weekend * 10)::int
                    ELSE 0
                END
                + make_interval(hours => width_bucket(u_hour, hours.bounds), secs => u_within * 3600) AS at
        FROM ordinary, hours
    ) o, span
    UNION ALL
    SELECT :events + i, 'past',
        span.ends - interval '9 years' - interval '3 days'
            - (hashint8extended(i, :seed * 100 + 5) & 9007199254740991) / 9007199254740992.0::float8 * interval '5830 days'
    FROM generate_series(1, :past_events) i, span
    UNION ALL
    SELECT :events + :past_events + i, 'future',
        span.ends + interval '14 months' + interval '3 days'
            + (hashint8extended(i, :seed * 100 + 6) & 9007199254740991) / 9007199254740992.0::float8 * interval '1750 days'
    FROM generate_series(1, :future_events) i, span
),
drawn AS (
    SELECT i, origin, at,
        width_bucket((hashint8extended(i, :seed * 100 + 7) & 9007199254740991) / 9007199254740992.0::float8, shares.bounds) + 1
            AS action_n,
        (hashint8extended(i, :seed * 100 + 8) & 9007199254740991) / 9007199254740992.0::float8 AS u_principal,
        (hashint8extended(i, :seed * 100 + 9) & 9007199254740991) / 9007199254740992.0::float8 AS u_patient,
        (hashint8extended(i, :seed * 100 + 10) & 9007199254740991) / 9007199254740992.0::float8 AS u_failure,
        hashint8extended(i, :seed * 100 + 11) & 1073741823 AS bits
    FROM timed, shares
),
-- A rank between 0 and n - 1, rank k about as frequent as 1 / (k + 8) (Zipf-Mandelbrot): some are busy, most are not.
-- The multiplication scatters the ranks over the ids.
played AS (
    SELECT d.*, a.action, a.resource_type, a.actor, a.classification, a.interaction, a.failure,
        u_failure < a.failure_rate AS failed,
        1 + CASE a.actor
            WHEN 'practitioner' THEN (floor(8 * power(408 / 8.0, u_principal))::int - 8) * 263 % 400
            WHEN 'patient' THEN (floor(8 * power(3008 / 8.0, u_patient))::int - 8) * 1361 % 3000
            WHEN 'system' THEN (floor(8 * power(20 / 8.0, u_principal))::int - 8) * 5 % 12
            ELSE floor(8 * power(16 / 8.0, u_principal))::int - 8
        END AS principal,
        1 + (floor(8 * power(3008 / 8.0, u_patient))::int - 8) * 1361 % 3000 AS patient
    FROM drawn d JOIN actions a ON a.n = d.action_n
)
INSERT INTO public.audit_log ("timestamp", action, status, principal_id, principal_type, organization_id, resource_type,
    resource_id, outcome_description, correlation_id, data_classification, metadata)
SELECT
    at AT TIME ZONE 'UTC',
    action,
    CASE WHEN failed THEN 'failure' ELSE 'success' END,
    actor || '/' || lpad(principal::text, 4, '0'),
    actor,
    'organization/' || (ARRAY['north', 'south', 'lakeside', 'childrens', 'rehab', 'outpatient'])[1 + (principal * 7 + 3) % 6],
    resource_type,
    CASE
        WHEN resource_type IN ('Patient', 'Person') THEN 'patient/' || lpad(patient::text, 4, '0')
        WHEN resource_type = 'Practitioner' THEN actor || '/' || lpad(principal::text, 4, '0')
        WHEN resource_type = 'PractitionerRole' THEN 'practitioner/' || lpad((1 + bits % 400)::text, 4, '0')
        ELSE lower(resource_type) || '/' || (patient * 100 + bits % 100)
    END,
    CASE WHEN failed THEN failure END,
    md5(:seed || '/' || i)::uuid::text,
    classification,
    jsonb_build_object(
        'event_type', 'rest',
        'subtype', interaction,
        'purpose_of_use', CASE
            WHEN action = 'access.emergency' THEN 'ETREAT'
            WHEN actor = 'patient' THEN 'PATRQT'
            WHEN actor = 'practitioner' AND bits % 20 > 0 THEN 'TREAT'
            WHEN actor = 'practitioner' THEN 'HPAYMT'
            ELSE 'HOPERAT'
        END,
        -- Addresses reserved for documentation (RFC 5737) and private networks (RFC 1918).
        'ip', CASE
            WHEN actor = 'patient' THEN '203.0.113.' || 1 + bits % 254
            ELSE '10.' || 1 + (principal * 7 + 3) % 6 || '.' || principal % 200 || '.' || 1 + bits % 3
        END,
        'user_agent', CASE actor
            WHEN 'system' THEN (ARRAY['hl7-gateway/4.2', 'lab-interface/2.9'])[1 + principal % 2]
            WHEN 'patient' THEN (ARRAY['portal-ios/7.1', 'portal-android/7.0', 'portal-web/7.2'])[1 + bits % 3]
            ELSE (ARRAY['ward-client/11.4', 'ward-client/11.5', 'mobile-rounds/3.0'])[1 + principal % 3]
        END,
        'session', substr(md5(actor || principal || at::date), 1, 16),
        'patient', CASE WHEN classification = 'PHI' THEN 'patient/' || lpad(patient::text, 4, '0') END,
        'source', CASE origin WHEN 'ordinary' THEN 'his' WHEN 'past' THEN 'legacy-import' ELSE 'bedside-device' END
    )
FROM played
-- As a real log grows: in order of time, so that id follows it.
ORDER BY at, i;

RESET jit;
