//! Passwords are hashed once, in the place where they stand.

use super::plan;
use crate::routing::{Catalog, Parsed, Policy};

#[test]
fn a_plain_password_gives_way_to_a_verifier() {
    let rows = [
        (
            "CREATE ROLE bob LOGIN PASSWORD 'plain''x' SUPERUSER",
            Some("bob"),
            "plain'x",
            "CREATE ROLE bob LOGIN PASSWORD 'VERIFIER' SUPERUSER",
        ),
        (
            r"ALTER USER bob WITH ENCRYPTED PASSWORD E'a\\b'",
            Some("bob"),
            r"a\b",
            "ALTER USER bob WITH ENCRYPTED PASSWORD 'VERIFIER'",
        ),
        (
            "alter role current_user password /* here */ 'p'",
            None,
            "p",
            "alter role current_user password /* here */ 'VERIFIER'",
        ),
        (
            "CREATE USER \"password\" PASSWORD 'p' VALID UNTIL '2030-01-01'",
            Some("password"),
            "p",
            "CREATE USER \"password\" PASSWORD 'VERIFIER' VALID UNTIL '2030-01-01'",
        ),
        (
            "CREATE GROUP g PASSWORD U&'p\\0061'; SELECT now()",
            Some("g"),
            "pa",
            "CREATE GROUP g PASSWORD 'VERIFIER'; SELECT (pg_catalog.current_setting('pgmend.now')::pg_catalog.timestamptz) AS \"now\"",
        ),
        (
            "ALTER ROLE bob PASSWORD U&'p!0061' UESCAPE '!' LOGIN",
            Some("bob"),
            "pa",
            "ALTER ROLE bob PASSWORD 'VERIFIER' LOGIN",
        ),
    ];
    for (sql, role, plain, sent) in rows {
        let plan = plan(sql);
        let [password] = plan.passwords.as_slice() else { panic!("{sql}: {:?}", plan.passwords) };
        assert_eq!((password.role.as_deref(), password.plain.expose()), (role, plain), "{sql}");
        assert_eq!(plan.with_verifiers(&["VERIFIER".to_owned()]), sent);
        assert!(!format!("{password:?}").contains(&format!("\"{plain}\"")), "a password is never printed");
    }
}

#[test]
fn what_is_hashed_already_goes_as_it_is() {
    for sql in [
        "ALTER ROLE bob PASSWORD NULL",
        "ALTER ROLE bob PASSWORD 'SCRAM-SHA-256$4096:x$y:z'",
        "ALTER ROLE bob PASSWORD 'md5900150983cd24fb0d6963f7d28e17f72'",
        "ALTER ROLE bob LOGIN",
        "ALTER ROLE bob SET search_path = 'x'",
        "CREATE TABLE t (password text DEFAULT 'x')",
    ] {
        assert!(plan(sql).passwords.is_empty(), "{sql}");
    }
}

#[test]
fn two_passwords_of_one_text_keep_their_order() {
    let parsed = Parsed::of("CREATE ROLE a PASSWORD 'x'; CREATE ROLE b PASSWORD 'y'").expect("SQL");
    let plan = parsed.plan(&Catalog::default(), &Policy::default());
    let sent = plan.with_verifiers(&["1".into(), "2'".into()]);
    assert_eq!(sent, "CREATE ROLE a PASSWORD '1'; CREATE ROLE b PASSWORD '2'''");
}
