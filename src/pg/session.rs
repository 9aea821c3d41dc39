//! What a session is: facts that its user cannot choose, and the name that his program gave itself.

use crate::pg::json::Object;
use crate::pg::signal;
use pgrx::pg_sys;
use std::ffi::{CStr, CString};

/// The session as a JSON object.
pub fn describe() -> CString {
    let mut object = Object::new();
    // SAFETY: look-ups with missing_ok; the program's name is a string of the server's or null.
    unsafe {
        for (name, role) in [
            ("session_user", pg_sys::GetSessionUserId()),
            ("role", pg_sys::GetUserId()),
        ] {
            let text = pg_sys::GetUserNameFromId(role, true);
            if !text.is_null() {
                object.put(name, CStr::from_ptr(text).to_bytes());
            }
        }
        if let Some(address) = client_address() {
            object.put("client_addr", address.to_bytes());
        }
        let program = pg_sys::application_name;
        if !program.is_null() {
            object.put("application_name", CStr::from_ptr(program).to_bytes());
        }
        let pid = CString::new(signal::my_pid().to_string()).unwrap_or_default();
        object.put_json("pid", &pid);
    }
    object.finish()
}

/// The name that the session's program gave itself.
pub fn program() -> String {
    // SAFETY: a string of the server's, or null.
    unsafe {
        let program = pg_sys::application_name;
        if program.is_null() {
            return String::new();
        }
        CStr::from_ptr(program).to_string_lossy().into_owned()
    }
}

/// The address of the client, as text. `None`: a socket of the machine.
pub fn address() -> Option<String> {
    client_address().map(|address| address.to_string_lossy().into_owned())
}

/// `None`: the session came through a socket of the machine.
fn client_address() -> Option<CString> {
    // SAFETY: the functions take and return what is passed here.
    unsafe {
        if pg_sys::MyProcPort.is_null() {
            return None;
        }
        let address = pgrx::direct_function_call_as_datum(pg_sys::inet_client_addr, &[])?;
        let text = pgrx::direct_function_call_as_datum(pg_sys::network_host, &[Some(address)])?;
        let text = pg_sys::text_to_cstring(text.cast_mut_ptr());
        Some(CStr::from_ptr(text).to_owned())
    }
}

/// A text that may come from another database, for this one: what its encoding may not have is a question mark.
pub fn printable(text: String) -> String {
    // SAFETY: reads a variable.
    let encoding = unsafe { pg_sys::GetDatabaseEncoding() };
    if encoding == pg_sys::pg_enc::PG_UTF8 as i32 || text.is_ascii() {
        return text;
    }
    text.chars()
        .map(|one| if one.is_ascii() { one } else { '?' })
        .collect()
}

/// The schemas in which names are looked for, in that order; of temporary objects too, where the session has any.
pub fn search_path() -> Vec<u32> {
    // SAFETY: a list of numbers in the current memory.
    unsafe {
        let list = pg_sys::fetch_search_path(true);
        if list.is_null() {
            return Vec::new();
        }
        let path = (0..usize::try_from((*list).length).unwrap_or(0))
            .map(|index| (*(*list).elements.add(index)).oid_value.to_u32())
            .collect();
        pg_sys::list_free(list);
        path
    }
}

/// Whether the session has a schema for temporary objects: what a name means can change then without anybody else's doing.
pub fn has_temporary_objects() -> bool {
    let (mut schema, mut toast) = (pg_sys::InvalidOid, pg_sys::InvalidOid);
    // SAFETY: reads variables.
    unsafe { pg_sys::GetTempNamespaceState(&mut schema, &mut toast) };
    schema != pg_sys::InvalidOid
}
