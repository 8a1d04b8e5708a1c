//! Files of TitanCompute's processes: whole or absent, private where they hold a secret, in this user's directories.
//!
//! - [`write`], [`write_pair`], [`make_dir_whole`], [`Lock`]: what is written is never seen in part, after a crash and on a full disk either.
//! - [`data_dir`], [`cache_dir`]: where this user's files are. [`others_can_read`]: whether a secret is one.
//! - [`without_bom`], [`text`]: what editors put before a text is no part of it.
//!
//! What is in the files is for others to know.

mod directories;
mod lock;
mod text;
mod write;

pub use directories::{CACHE_DIR, DATA_DIR, cache_dir, data_dir};
pub use lock::Lock;
pub use text::{text, without_bom};
pub use write::{Access, make_dir, make_dir_whole, others_can_read, write, write_pair};
