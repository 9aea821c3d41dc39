//! The plan of a statement that has run, and the parameters that it ran with.

use crate::pg::statement_hooks::Query;
use pgrx::pg_sys;
use std::ffi::CStr;

/// The plan as EXPLAIN (FORMAT JSON) writes it, with what really happened where every node has counted. To be called before the
/// executor ends. Raises.
pub fn plan(query: Query) -> String {
    let query_desc = query.raw();
    // SAFETY: the executor has finished and not ended; the state and its text live in the current memory context.
    unsafe {
        let state = pg_sys::NewExplainState();
        (*state).analyze = query.is_instrumented();
        (*state).buffers = (*state).analyze;
        (*state).timing = (*state).analyze;
        (*state).summary = false;
        (*state).format = pg_sys::ExplainFormat::EXPLAIN_FORMAT_JSON;
        pg_sys::ExplainBeginOutput(state);
        pg_sys::ExplainPrintPlan(state, query_desc);
        if (*state).analyze {
            pg_sys::ExplainPrintTriggers(state, query_desc);
        }
        pg_sys::ExplainPrintJITSummary(state, query_desc);
        pg_sys::ExplainEndOutput(state);
        let text = (*state).str_;
        let text = std::slice::from_raw_parts((*text).data.cast::<u8>(), (*text).len as usize);
        String::from_utf8_lossy(text).into_owned()
    }
}

/// Longer values are not written out.
const LONGEST_VALUE: usize = 64 << 10;

/// A parameter's type, and its value where it was asked for.
pub struct Parameter {
    pub type_name: String,
    pub value: Option<String>,
}

/// The parameters of a statement. Calls output functions of types. Raises.
pub fn parameters(query: Query, with_values: bool) -> Vec<Parameter> {
    let query_desc = query.raw();
    let mut all = Vec::new();
    // SAFETY: the list is alive while the statement is; a list with a hook computes its values when asked, as the executor does.
    unsafe {
        let list = (*query_desc).params;
        if list.is_null() {
            return all;
        }
        for number in 0..(*list).numParams {
            let parameter = if let Some(fetch) = (*list).paramFetch {
                let mut room = pg_sys::ParamExternData::default();
                // Somebody else's function, which may raise.
                *pg_sys::submodules::ffi::pg_guard_ffi_boundary(|| {
                    fetch(list, number + 1, true, &mut room)
                })
            } else {
                *(*list).params.as_ptr().add(number as usize)
            };
            if parameter.ptype == pg_sys::InvalidOid {
                all.push(Parameter {
                    type_name: "unused".to_owned(),
                    value: None,
                });
                continue;
            }
            let type_name = CStr::from_ptr(pg_sys::format_type_be(parameter.ptype))
                .to_string_lossy()
                .into_owned();
            let value = (with_values && !parameter.isnull).then(|| {
                let (mut function, mut variable) = (pg_sys::InvalidOid, false);
                pg_sys::getTypeOutputInfo(parameter.ptype, &mut function, &mut variable);
                if variable {
                    let bytes = pg_sys::toast_raw_datum_size(parameter.value);
                    if bytes > LONGEST_VALUE {
                        return format!("({bytes} bytes)");
                    }
                }
                CStr::from_ptr(pg_sys::OidOutputFunctionCall(function, parameter.value))
                    .to_string_lossy()
                    .into_owned()
            });
            all.push(Parameter { type_name, value });
        }
    }
    all
}
