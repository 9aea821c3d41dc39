//! JSON objects, in the server's encoding.

use pgrx::datum::DatumWithOid;
use pgrx::pg_sys;
use std::ffi::{CStr, CString};

/// A flag of a jsonb value whose root is an object, `JB_FOBJECT`.
const IS_OBJECT: u32 = 0x2000_0000;

/// An object that is being written.
pub struct Object {
    text: pg_sys::StringInfo,
    empty: bool,
}

impl Object {
    pub fn new() -> Self {
        // SAFETY: allocates in the current memory context.
        let text = unsafe { pg_sys::makeStringInfo() };
        let mut object = Self { text, empty: true };
        object.append(c"{");
        object
    }

    fn append(&mut self, text: &CStr) {
        // SAFETY: the buffer was made by the server.
        unsafe { pg_sys::appendStringInfoString(self.text, text.as_ptr()) };
    }

    /// Adds a text.
    pub fn put(&mut self, name: &str, value: &[u8]) {
        self.name(name);
        // A text of the server holds no zero byte.
        let value = CString::new(value).unwrap_or_default();
        // SAFETY: both are valid strings.
        unsafe { pg_sys::escape_json(self.text, value.as_ptr()) };
    }

    /// Adds what is JSON already.
    pub fn put_json(&mut self, name: &str, json: &CStr) {
        self.name(name);
        self.append(json);
    }

    fn name(&mut self, name: &str) {
        if !self.empty {
            self.append(c", ");
        }
        self.empty = false;
        let name = CString::new(name).unwrap_or_default();
        // SAFETY: both are valid strings.
        unsafe { pg_sys::escape_json(self.text, name.as_ptr()) };
        self.append(c": ");
    }

    pub fn finish(mut self) -> CString {
        self.append(c"}");
        // SAFETY: the buffer holds a zero-terminated string.
        unsafe { CStr::from_ptr((*self.text).data) }.to_owned()
    }
}

/// A jsonb value from its bytes, without their length.
fn value(content: &[u8]) -> pg_sys::Datum {
    let header = size_of::<u32>();
    // SAFETY: as much memory as is written.
    unsafe {
        let target = pg_sys::palloc(header + content.len()).cast::<u8>();
        pgrx::varlena::set_varsize_4b(target.cast(), (header + content.len()) as i32);
        target
            .add(header)
            .copy_from_nonoverlapping(content.as_ptr(), content.len());
        pg_sys::Datum::from(target)
    }
}

fn is_object(content: &[u8]) -> bool {
    content
        .first_chunk::<4>()
        .is_some_and(|head| u32::from_ne_bytes(*head) & IS_OBJECT != 0)
}

/// A jsonb value as text.
pub fn text(content: &[u8]) -> CString {
    let datum = value(content);
    // SAFETY: a jsonb value that was just made; its container follows the length.
    unsafe {
        let container = datum.cast_mut_ptr::<u8>().add(size_of::<u32>());
        let text = pg_sys::JsonbToCString(
            std::ptr::null_mut(),
            container.cast(),
            content.len() as std::ffi::c_int,
        );
        CStr::from_ptr(text).to_owned()
    }
}

/// The bytes of a jsonb object with more keys, which replace those of the same name. What is no object becomes the value of a
/// key `metadata`.
pub fn extended(base: Option<&[u8]>, texts: &[(&str, &[u8])], session: Option<&CStr>) -> Vec<u8> {
    let mut object = Object::new();
    let base = base.filter(|content| {
        let keep = is_object(content);
        if !keep {
            object.put_json("metadata", &text(content));
        }
        keep
    });
    for (name, bytes) in texts {
        object.put(name, bytes);
    }
    if let Some(session) = session {
        object.put_json("session", session);
    }
    let text = object.finish();
    // SAFETY: the functions take and return what is passed here; the result is detoasted and copied.
    unsafe {
        let mut whole = pgrx::direct_function_call_as_datum(
            pg_sys::jsonb_in,
            &[Some(pg_sys::Datum::from(text.as_ptr()))],
        );
        if let Some(base) = base {
            whole = pgrx::direct_function_call_as_datum(
                pg_sys::jsonb_concat,
                &[Some(value(base)), whole],
            );
        }
        let Some(whole) = whole else {
            return Vec::new();
        };
        let whole = pg_sys::pg_detoast_datum_packed(whole.cast_mut_ptr());
        std::slice::from_raw_parts(
            pgrx::varlena::vardata_any(whole).cast::<u8>(),
            pgrx::varlena::varsize_any_exhdr(whole),
        )
        .to_vec()
    }
}

/// A text of the server's encoding as an argument of a statement.
pub fn argument(text: &CStr) -> DatumWithOid<'static> {
    // SAFETY: the value is a text, in memory of the current context, which outlives the statement.
    unsafe {
        let datum = pg_sys::Datum::from(pg_sys::cstring_to_text(text.as_ptr()));
        DatumWithOid::new(datum, pg_sys::TEXTOID)
    }
}
