//! tmp tests dump
use super::*;
#[test]
fn dump() {
    for sql in std::fs::read_to_string("/tmp/w/h3-scratch/rows.sql").unwrap().lines().filter(|l| !l.is_empty()) {
        match Parsed::of(sql) { Err(e) => println!("{sql}\n    ERR {e}"), Ok(_) => {
        let p = plan(sql);
        println!("{sql}\n    {}\n    {}", told(&p), if p.rewritten.is_some() { sent(sql) } else { "-".into() });
        for pw in &p.passwords { println!("    PW {:?} {}", pw.role, p.with_verifiers(&["VER".into()])); }
        } }
    }
}
