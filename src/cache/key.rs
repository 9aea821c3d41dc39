//! What a stored result belongs to: all that can make the same text return something else.

use super::Request;
use super::shape::Shape;
use crate::pg::{guc, identity, session};
use crate::shmem::cache;
use std::collections::hash_map::DefaultHasher;
use std::hash::Hasher as _;

/// The bytes of a key, each piece with its length; and their hash.
pub struct Key {
    pub bytes: Vec<u8>,
    pub hash: u64,
}

pub fn add(bytes: &mut Vec<u8>, piece: &[u8]) {
    bytes.extend_from_slice(&(piece.len() as u32).to_ne_bytes());
    bytes.extend_from_slice(piece);
}

/// Takes the next piece off the front.
pub fn take<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = u32::from_ne_bytes(rest.get(..4)?.try_into().ok()?) as usize;
    let piece = rest.get(4..4 + length)?;
    *rest = &rest[4 + length..];
    Some(piece)
}

impl Key {
    pub fn of(request: &Request<'_>, shape: &Shape) -> Self {
        let mut bytes = Vec::with_capacity(512);
        // Those that are listed come first.
        add(&mut bytes, request.text.as_bytes());
        add(&mut bytes, request.params.unwrap_or("").as_bytes());
        add(&mut bytes, request.label.unwrap_or("").as_bytes());
        add(&mut bytes, &identity::current_role().to_u32().to_ne_bytes());
        add(&mut bytes, &identity::my_database().to_u32().to_ne_bytes());
        add(
            &mut bytes,
            &[request.form as u8, u8::from(request.params.is_some())],
        );
        add(&mut bytes, request.kind.name.as_bytes());
        if shape.session_user {
            add(&mut bytes, &identity::session_user().to_u32().to_ne_bytes());
        }
        for schema in session::search_path() {
            add(&mut bytes, &schema.to_ne_bytes());
        }
        add(&mut bytes, &[]);
        for relation in &shape.relations {
            add(&mut bytes, &relation.to_ne_bytes());
        }
        add(&mut bytes, &[]);
        guc::output_settings(&mut |piece| add(&mut bytes, piece));
        for setting in &shape.settings {
            add(&mut bytes, setting.as_bytes());
            match guc::value_of(setting) {
                Some(value) => add(&mut bytes, format!("={value}").as_bytes()),
                None => add(&mut bytes, &[]),
            }
        }
        let hash = hash(&bytes);
        Self { bytes, hash }
    }
}

/// Whoever knows a key cannot tell where it lies.
fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write_u64(cache::secret());
    hasher.write(bytes);
    hasher.finish()
}

/// What is listed of a key.
pub struct Listed<'a> {
    pub text: &'a [u8],
    pub params: &'a [u8],
    pub label: &'a [u8],
    pub role: u32,
}

pub fn listed(mut bytes: &[u8]) -> Option<Listed<'_>> {
    Some(Listed {
        text: take(&mut bytes)?,
        params: take(&mut bytes)?,
        label: take(&mut bytes)?,
        role: u32::from_ne_bytes(take(&mut bytes)?.try_into().ok()?),
    })
}
