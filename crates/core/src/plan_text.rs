//! A plan, as EXPLAIN writes it in JSON, without the constants in its expressions.

use serde_json::Value;

/// Keys whose values are words of the server or names of objects. What is not here counts as an expression: a key that a later
/// version brings cannot let a constant through.
const NAMES: [&str; 37] = [
    "Node Type",
    "Parent Relationship",
    "Join Type",
    "Strategy",
    "Partial Mode",
    "Operation",
    "Command",
    "Scan Direction",
    "Relation Name",
    "Schema",
    "Alias",
    "Index Name",
    "CTE Name",
    "Subplan Name",
    "Tuplestore Name",
    "Function Name",
    "Table Function Name",
    "Custom Plan Provider",
    "Sort Method",
    "Sort Space Type",
    "Grouping Key Method",
    "Conflict Resolution",
    "Conflict Arbiter Indexes",
    "Cache Mode",
    "Constraint Name",
    "Trigger Name",
    "Relation",
    "Sort Methods Used",
    "Group Count Type",
    "Storage",
    "Disabled",
    "Async Capable",
    "Parallel Aware",
    "Single Copy",
    "Inner Unique",
    "Index Searches",
    "Planned Partitions",
];

/// Passes every expression through `normalize`; one that it cannot read is left out.
pub fn redact(plan: &mut Value, normalize: &mut dyn FnMut(&str) -> Option<String>) {
    match plan {
        Value::Object(fields) => {
            for (key, value) in fields.iter_mut() {
                if NAMES.contains(&key.as_str()) && !value.is_object() {
                    continue;
                }
                redact(value, normalize);
            }
        }
        Value::Array(values) => {
            for value in values {
                redact(value, normalize);
            }
        }
        Value::String(text) => *text = normalize(text).unwrap_or_else(|| "…".to_owned()),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn expressions_are_normalized_and_names_stay() {
        let mut plan = json!({
            "Plan": {
                "Node Type": "Seq Scan",
                "Relation Name": "patient 1",
                "Filter": "(name = 'Smith'::text)",
                "Plan Rows": 5,
                "Sort Key": ["(a || 'Smith')"],
                "Something New": "'Smith'",
                "Plans": [{ "Node Type": "Result", "One-Time Filter": "unreadable" }],
            }
        });
        redact(&mut plan, &mut |text| {
            (text != "unreadable").then(|| text.replace("'Smith'", "$1"))
        });
        assert_eq!(
            plan,
            json!({
                "Plan": {
                    "Node Type": "Seq Scan",
                    "Relation Name": "patient 1",
                    "Filter": "(name = $1::text)",
                    "Plan Rows": 5,
                    "Sort Key": ["(a || $1)"],
                    "Something New": "$1",
                    "Plans": [{ "Node Type": "Result", "One-Time Filter": "…" }],
                }
            })
        );
        assert!(!plan.to_string().contains("Smith"));
    }
}
