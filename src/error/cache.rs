//! What can go wrong with the result cache.

use super::{Error, Parts};
use pgrx::PgSqlErrorCode as Code;

#[derive(Debug, Clone)]
pub enum CacheError {
    NotOneSelect,
    NoSelect,
    NotCacheable {
        detail: String,
        hint: Option<String>,
    },
    UnknownType(String),
    Params(String),
    Columns(String),
}

impl From<CacheError> for Error {
    fn from(error: CacheError) -> Self {
        Self::Cache(error)
    }
}

impl CacheError {
    pub(super) fn parts(&self) -> Parts {
        match self {
            Self::NotOneSelect => (
                Code::ERRCODE_SYNTAX_ERROR,
                "a cached query must be one statement".to_owned(),
                None,
                None,
            ),
            Self::NoSelect => (
                Code::ERRCODE_FEATURE_NOT_SUPPORTED,
                "only a SELECT can be cached".to_owned(),
                None,
                None,
            ),
            Self::NotCacheable { detail, hint } => (
                Code::ERRCODE_FEATURE_NOT_SUPPORTED,
                "the query cannot be cached".to_owned(),
                Some(detail.clone()),
                hint.clone(),
            ),
            Self::UnknownType(name) => (
                Code::ERRCODE_UNDEFINED_OBJECT,
                format!("there is no cache type \"{name}\""),
                None,
                Some("See audit_db.cache_types.".to_owned()),
            ),
            Self::Params(reason) => (
                Code::ERRCODE_INVALID_PARAMETER_VALUE,
                "params must be a JSON array with an element for each parameter".to_owned(),
                Some(reason.clone()),
                None,
            ),
            Self::Columns(detail) => (
                Code::ERRCODE_DATATYPE_MISMATCH,
                "the columns of the cached query are not those that are listed".to_owned(),
                Some(detail.clone()),
                None,
            ),
        }
    }
}
