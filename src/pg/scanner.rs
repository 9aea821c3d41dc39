//! The server's own scanner: the words of a statement.

use crate::pg::memory;
use audit_db_core::statement_text::{self, Kind, Token, Values};
use pgrx::pg_sys;
use std::ffi::{CStr, CString, c_int};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

/// Token numbers of the server's grammar: those of the scanner come first, in this order, in 14 to 18.
mod token {
    pub const IDENT: i32 = 258;
    pub const UIDENT: i32 = 259;
    pub const FCONST: i32 = 260;
    pub const SCONST: i32 = 261;
    pub const USCONST: i32 = 262;
    pub const BCONST: i32 = 263;
    pub const XCONST: i32 = 264;
    pub const OP: i32 = 265;
    pub const ICONST: i32 = 266;
    pub const PARAM: i32 = 267;
    /// TYPECAST to NOT_EQUALS; keywords follow.
    pub const FIRST_SIGN: i32 = 268;
    pub const LAST_SIGN: i32 = 274;
}

/// Longest statement that is looked at as a whole.
const SCANNED_BYTES: usize = 1 << 18;

/// `standard_conforming_strings` as the session first had it.
static FIRST: AtomicU8 = AtomicU8::new(UNKNOWN);
const UNKNOWN: u8 = 2;
/// Whether it has been another one since: nobody knows then with which one an old statement was read.
static CHANGED: AtomicBool = AtomicBool::new(false);

/// To be called with every statement.
#[inline]
pub fn note_setting() {
    // SAFETY: reads a variable.
    let now = u8::from(unsafe { pg_sys::standard_conforming_strings });
    if FIRST.load(Ordering::Relaxed) != now {
        note_change(now);
    }
}

#[cold]
fn note_change(now: u8) {
    if FIRST.load(Ordering::Relaxed) == UNKNOWN {
        FIRST.store(now, Ordering::Relaxed);
    } else {
        CHANGED.store(true, Ordering::Relaxed);
    }
}

/// The text of a statement without its constants and comments. What the scanner cannot read is left out: the text was cut.
/// Empty: it can be read in two ways.
pub fn normalize(text: &[u8], values: Values) -> String {
    let text = &text[..text.len().min(SCANNED_BYTES)];
    note_setting();
    // SAFETY: reads a variable.
    let conforming = unsafe { pg_sys::standard_conforming_strings };
    let words = scan(text, conforming);
    // What is a constant with one setting may be none with the other.
    if CHANGED.load(Ordering::Relaxed) && text.contains(&b'\\') && scan(text, !conforming) != words
    {
        return String::new();
    }
    statement_text::normalize(
        words.iter().map(|word| Token {
            kind: word.kind,
            text: &word.text,
            spaced: word.spaced,
        }),
        values,
    )
}

#[derive(PartialEq, Eq)]
struct Word {
    kind: Kind,
    text: String,
    spaced: bool,
}

fn scan(text: &[u8], conforming: bool) -> Vec<Word> {
    let mut words = Vec::new();
    let Ok(text) = CString::new(text) else {
        return words;
    };
    // Where the scanner raises, what it has read until then stays.
    let _ = memory::contained(|| scan_into(&text, conforming, &mut words));
    words
}

fn scan_into(text: &CStr, conforming: bool, words: &mut Vec<Word>) {
    // SAFETY: what the server's parser does; the scanner lives in memory that the caller frees.
    unsafe {
        let mut extra = pg_sys::core_yy_extra_type::default();
        let scanner = pg_sys::scanner_init(
            text.as_ptr(),
            &mut extra,
            &raw const pg_sys::ScanKeywords,
            (&raw const pg_sys::ScanKeywordTokens).cast(),
        );
        // A warning about a backslash belongs to the statement, which has had it.
        extra.escape_string_warning = false;
        extra.standard_conforming_strings = conforming;
        let mut end = 0;
        loop {
            let mut value = pg_sys::core_YYSTYPE::default();
            let mut location: c_int = 0;
            let token = pg_sys::core_yylex(&mut value, &mut location, scanner);
            if token == 0 {
                break;
            }
            let start = usize::try_from(location).unwrap_or(0);
            // The scanner puts a zero behind the word that it has read.
            let word = CStr::from_ptr(extra.scanbuf.add(start)).to_bytes();
            let kind = match token {
                token::FCONST
                | token::SCONST
                | token::USCONST
                | token::BCONST
                | token::XCONST
                | token::ICONST => Kind::Constant,
                token::PARAM => Kind::Parameter,
                token::IDENT | token::UIDENT => Kind::Name,
                token::OP | token::FIRST_SIGN..=token::LAST_SIGN => Kind::Sign,
                keyword if keyword > token::LAST_SIGN => Kind::Keyword,
                _ => Kind::Sign,
            };
            words.push(Word {
                kind,
                text: String::from_utf8_lossy(word).into_owned(),
                spaced: start > end,
            });
            end = start + word.len();
        }
        pg_sys::scanner_finish(scanner);
    }
}
