//! An audit event as bytes: how it lies in the queue between the session that logs it and the worker that stores it.

/// Columns of the standard audit table that an event brings values for, besides its time; in the order of their fields.
pub const COLUMNS: [&str; 11] = [
    "action",
    "status",
    "principal_id",
    "principal_type",
    "organization_id",
    "resource_type",
    "resource_id",
    "outcome_description",
    "correlation_id",
    "data_classification",
    "metadata",
];
/// Place of `metadata`, the only field that is not text.
pub const METADATA: usize = 10;
/// The column of the event's time.
pub const TIME_COLUMN: &str = "timestamp";

/// Values of an event, each `None` for null. What the bytes mean is the server's business.
pub type Fields<'a> = [Option<&'a [u8]>; COLUMNS.len()];

/// What is known of an event besides its values. Times are microseconds of the server's epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Which event of its database it is.
    pub sequence: u64,
    /// The call that waits for it; 0: none.
    pub ticket: u64,
    /// Where that call waits.
    pub waiter: u32,
    pub role: u32,
    pub table: u32,
    /// SQLSTATE of a rejected event, packed; 0: none. Or [`WITHDRAWN`].
    pub rejected: u32,
    /// The user who is connected, whatever his role is now.
    pub session_user: u32,
    pub queued_at: i64,
    pub event_time: i64,
}

const HEADER_BYTES: usize = 8 * 4 + 4 * 5 + 2;
/// Bytes of a record before its values.
pub const HEAD_BYTES: usize = 4 + HEADER_BYTES;
/// Records begin at multiples of this.
const ALIGNMENT: usize = 8;

const fn aligned(bytes: usize) -> usize {
    bytes.next_multiple_of(ALIGNMENT)
}

/// Bytes of a record, a multiple of eight.
pub fn size(fields: &Fields) -> usize {
    let values: usize = fields.iter().flatten().map(|value| 4 + value.len()).sum();
    aligned(HEAD_BYTES + values)
}

/// Writes a record to the beginning of `target`, which must have [`size`] bytes at least. Values longer than 4 GB do not exist in
/// the server.
pub fn write(target: &mut [u8], header: &Header, fields: &Fields) {
    let mut writer = Writer { target, at: 0 };
    writer.put(&(size(fields) as u32).to_ne_bytes());
    writer.put(&header.sequence.to_ne_bytes());
    writer.put(&header.ticket.to_ne_bytes());
    writer.put(&header.queued_at.to_ne_bytes());
    writer.put(&header.event_time.to_ne_bytes());
    writer.put(&header.waiter.to_ne_bytes());
    writer.put(&header.role.to_ne_bytes());
    writer.put(&header.table.to_ne_bytes());
    writer.put(&header.rejected.to_ne_bytes());
    writer.put(&header.session_user.to_ne_bytes());
    let present = fields
        .iter()
        .enumerate()
        .filter(|(_, value)| value.is_some())
        .fold(0_u16, |mask, (place, _)| mask | 1 << place);
    writer.put(&present.to_ne_bytes());
    for value in fields.iter().flatten() {
        writer.put(&(value.len() as u32).to_ne_bytes());
        writer.put(value);
    }
}

/// Reads the record at the beginning of `source`. `None`: there is none, or it is not whole.
pub fn read(source: &[u8]) -> Option<(Header, Fields<'_>)> {
    let mut reader = Reader { source, at: 0 };
    let length = reader.u32()? as usize;
    if length > source.len() {
        return None;
    }
    let (sequence, ticket) = (reader.u64()?, reader.u64()?);
    let (queued_at, event_time) = (reader.u64()? as i64, reader.u64()? as i64);
    let (waiter, role, table) = (reader.u32()?, reader.u32()?, reader.u32()?);
    let (rejected, session_user) = (reader.u32()?, reader.u32()?);
    let present = u16::from_ne_bytes(reader.take(2)?.try_into().ok()?);
    let mut fields: Fields = [None; COLUMNS.len()];
    for (place, field) in fields.iter_mut().enumerate() {
        if present & (1 << place) != 0 {
            let length = reader.u32()? as usize;
            *field = Some(reader.take(length)?);
        }
    }
    let header = Header {
        sequence,
        ticket,
        waiter,
        role,
        table,
        rejected,
        session_user,
        queued_at,
        event_time,
    };
    Some((header, fields))
}

/// Where the number lies, and where the SQLSTATE.
const SEQUENCE_AT: usize = 4;
const REJECTED_AT: usize = 4 + 8 * 4 + 4 * 3;

/// Gives a record its number.
pub fn set_sequence(record: &mut [u8], sequence: u64) {
    record[SEQUENCE_AT..SEQUENCE_AT + 8].copy_from_slice(&sequence.to_ne_bytes());
}

/// In the place of an SQLSTATE: the session has taken the event back.
pub const WITHDRAWN: u32 = u32::MAX;

/// The number of a record.
pub fn sequence(record: &[u8]) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&record[SEQUENCE_AT..SEQUENCE_AT + 8]);
    u64::from_ne_bytes(number)
}

/// Marks an event as rejected with an SQLSTATE, packed into a number that is not 0.
pub fn set_rejected(record: &mut [u8], sqlstate: u32) {
    record[REJECTED_AT..REJECTED_AT + 4].copy_from_slice(&sqlstate.to_ne_bytes());
}

/// What [`set_rejected`] has written; 0: nothing.
pub fn rejected(record: &[u8]) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&record[REJECTED_AT..REJECTED_AT + 4]);
    u32::from_ne_bytes(number)
}

/// Bytes of the record that begins here, without reading it.
pub fn length(source: &[u8]) -> Option<usize> {
    let length = source.get(..4)?.try_into().ok()?;
    Some(u32::from_ne_bytes(length) as usize)
}

struct Writer<'a> {
    target: &'a mut [u8],
    at: usize,
}

impl Writer<'_> {
    fn put(&mut self, bytes: &[u8]) {
        self.target[self.at..self.at + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len();
    }
}

struct Reader<'a> {
    source: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(length)?;
        let bytes = self.source.get(self.at..end)?;
        self.at = end;
        Some(bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_ne_bytes(self.take(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_ne_bytes(self.take(8)?.try_into().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    type Values = Vec<Option<Vec<u8>>>;

    fn values() -> impl Strategy<Value = Values> {
        vec(
            proptest::option::of(vec(any::<u8>(), 0..300)),
            COLUMNS.len(),
        )
    }

    fn header() -> impl Strategy<Value = Header> {
        (any::<(u64, u64, u32, u32, u32, u32, u32, i64, i64)>(),).prop_map(
            |((
                sequence,
                ticket,
                waiter,
                role,
                table,
                rejected,
                session_user,
                queued_at,
                event_time,
            ),)| Header {
                sequence,
                ticket,
                waiter,
                role,
                table,
                rejected,
                session_user,
                queued_at,
                event_time,
            },
        )
    }

    fn fields(values: &Values) -> Fields<'_> {
        let mut fields: Fields = [None; COLUMNS.len()];
        for (field, value) in fields.iter_mut().zip(values) {
            *field = value.as_deref();
        }
        fields
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(header in header(), values in values(), rest in 0_usize..20) {
            let fields = fields(&values);
            let bytes = size(&fields);
            prop_assert_eq!(bytes % ALIGNMENT, 0);
            let mut target = vec![0xAA; bytes + rest];
            write(&mut target, &header, &fields);
            prop_assert_eq!(length(&target), Some(bytes));
            prop_assert_eq!(read(&target), Some((header, fields)));
            set_sequence(&mut target, 7);
            set_rejected(&mut target, 9);
            prop_assert_eq!(rejected(&target), 9);
            let changed = Header { sequence: 7, rejected: 9, ..header };
            prop_assert_eq!(read(&target), Some((changed, fields)));
            prop_assert!(target[bytes..].iter().all(|byte| *byte == 0xAA));
        }

        #[test]
        fn what_is_cut_off_is_not_read(header in header(), values in values(), keep in 0.0_f64..1.0) {
            let fields = fields(&values);
            let mut target = vec![0; size(&fields)];
            write(&mut target, &header, &fields);
            target.truncate((target.len() as f64 * keep) as usize);
            prop_assert_eq!(read(&target), None);
        }

        #[test]
        fn arbitrary_bytes_do_no_harm(bytes in vec(any::<u8>(), 0..400)) {
            read(&bytes);
        }
    }
}
