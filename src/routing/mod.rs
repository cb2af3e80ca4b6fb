//! What a statement is and how it is rewritten, in the modes in which every write goes to several nodes that must stay equal.
//!
//! Pure: text and the catalog's rows in, a plan out. It never sends anything, and it never decides what a client is told.
//!
//! How it is used:
//! 1. [`Parsed::of`] reads a text (a simple Query's string, or that of a Parse) with PostgreSQL's own parser. It is cheap to
//!    clone and may be kept by its text. [`Unparsed`] goes to all nodes as it is, as a write of which nothing is known but
//!    the words ([`Unparsed::unequal`]). Two kinds of text are to be treated so without asking: one with a backslash while
//!    `standard_conforming_strings` is off, and one that is not ASCII while the client's encoding is not UTF-8.
//! 2. [`Parsed::wants`], less what a [`Catalog`] knows ([`Catalog::lacks`]), makes one question ([`Wants::question`]) to the main
//!    node, on a connection with the client's `search_path` and temporary tables; its rows go to [`Catalog::learn`].
//! 3. [`Parsed::plan`] gives the [`Plan`]: the class of each statement, the text to send instead, what to lock first, and what
//!    stays unequal with the policy's verdict. Plans of prepared statements (Parse, PREPARE) count again at each execution:
//!    `locks` are taken and `pgmend.now` is set whenever one is executed. They are as old as the catalog with which they were made.
//! 4. When `uses_now`, the transaction needs, on every node and before the text, one moment of the main node:
//!    `set_config('pgmend.now', '2026-11-21 12:00:00.123456+00', true)` ([`NOW_SETTING`]). Without it the text fails on the server.
//!    A text that only reads and stands outside of a transaction block may go to its node as it was written, without the setting.
//!
//!    When `numbers` of a step is not zero, its calls that make large objects read `pgmend.large_1` and so on
//!    ([`number_setting`]), which must hold free numbers, the same on every node, new ones at each execution.
//!
//! A catalog is of one database, `search_path`, role and set of temporary tables ([`Class::Set`] of those asks for another), and is
//! out of date after [`Class::Ddl`], [`Class::Discard`], and anything that may run code: calls that are `Unequal` by kind `Function`
//! or `Opaque`.
//!
//! Not seen: operators, casts and aggregates of users whose functions are volatile. Parameters whose text is `now` are for who
//! has them: [`may_be_moment`].
//!
//! Read `class`, `facts`, `walk` (the one walk over a tree), `moments`, `insert`, then `plan`. `catalog` has the question.

pub mod catalog;
mod class;
mod facts;
mod functions;
mod insert;
mod large;
mod moments;
mod name;
mod names;
mod parsed;
mod password;
mod plan;
mod policy;
mod tokens;
mod tree;
mod walk;

#[cfg(test)]
mod tests;

pub use catalog::{Catalog, Wants};
pub use class::{Block, Class, Isolation, Modes};
pub use large::setting as number_setting;
pub use moments::{SETTING as NOW_SETTING, may_be_moment};
pub use name::Name;
pub use parsed::{MAX_TEXT, Parsed, Unparsed};
pub use password::Password;
pub use plan::{LockOn, Plan, Step};
pub use policy::{Hints, Kind, Policy, Unequal, Verdict};
