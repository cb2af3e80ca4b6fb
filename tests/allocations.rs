//! How often a transaction asks for memory in the session's core: never, once the session has found its size.

use one_session::{Session, batches, prepare};

#[path = "../fuzz/idle.rs"]
mod idle;
#[path = "../fuzz/one_session.rs"]
mod one_session;

#[test]
fn a_transaction_allocates_nothing() {
    for transaction_pooling in [true, false] {
        for (name, batch, answer) in batches() {
            let mut session = Session::new(transaction_pooling);
            prepare(&mut session);
            for _ in 0..3 {
                session.transaction(&batch, &answer);
            }
            let counted = allocation_counter::measure(|| {
                for _ in 0..1000 {
                    session.transaction(&batch, &answer);
                }
            });
            assert_eq!(counted.count_total, 0, "{name}, transaction pooling {transaction_pooling}");
        }
    }
}
