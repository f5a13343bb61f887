//! What is shared with the tests of the library.

#[path = "../../../../../tests/support/pki.rs"]
pub mod pki;
#[path = "../../../../../tests/support/process.rs"]
pub mod process;
#[path = "../../../../../tests/support/tool.rs"]
pub mod tool;
