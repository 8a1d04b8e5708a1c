//! `titan-bench net`: every subject over emulated networks.

pub(crate) mod record;
pub(crate) mod subject;
pub(crate) mod subjects;
