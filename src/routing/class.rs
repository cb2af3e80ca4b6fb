//! What a statement is, from its parse tree alone: its class, and whether it may stand in a transaction block.

use super::moments::string;
use pg_query::protobuf::{self as pb, TransactionStmtKind as Tx, VariableSetKind as SetKind};
use pg_query::{NodeEnum, NodeRef};

/// What a statement is for the fan-out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Class {
    /// Nothing but comments.
    Empty,
    /// One node will do.
    Read,
    /// Asks, but leaves something on the server: a lock, a number taken from a sequence. Every node, the main node's answer counts.
    ReadAll,
    /// INSERT, UPDATE, DELETE, MERGE, CALL, DO, also within WITH and EXPLAIN ANALYZE. Every node.
    Write,
    /// BEGIN, START TRANSACTION.
    Begin(Modes),
    /// COMMIT, END. `chain` begins the next one at once.
    Commit {
        /// AND CHAIN.
        chain: bool,
    },
    /// ROLLBACK, ABORT.
    Rollback {
        /// AND CHAIN.
        chain: bool,
    },
    /// SAVEPOINT, RELEASE, ROLLBACK TO.
    Savepoint,
    /// PREPARE TRANSACTION.
    PrepareTransaction,
    /// COMMIT PREPARED, ROLLBACK PREPARED.
    FinishPrepared,
    /// SET, RESET of a setting; every node. `SET TRANSACTION` is [`Class::SetTransaction`].
    Set {
        /// The setting; `None` for RESET ALL.
        name: Option<String>,
        /// SET LOCAL.
        local: bool,
    },
    /// SET TRANSACTION, SET SESSION CHARACTERISTICS.
    SetTransaction {
        /// What it sets.
        modes: Modes,
        /// SESSION CHARACTERISTICS.
        session: bool,
    },
    /// SHOW; one node.
    Show,
    /// DISCARD; every node.
    Discard {
        /// DISCARD ALL.
        all: bool,
    },
    /// PREPARE; the class of what is prepared is the step's `inner`.
    Prepare(String),
    /// EXECUTE of what PREPARE or a Parse message has named.
    Execute(String),
    /// DEALLOCATE; `None` for ALL.
    Deallocate(Option<String>),
    /// DECLARE; the class of its query is the step's `inner`.
    Declare {
        /// The cursor.
        name: String,
        /// WITH HOLD.
        hold: bool,
    },
    /// FETCH, MOVE.
    Fetch(String),
    /// CLOSE; `None` for ALL.
    Close(Option<String>),
    /// COPY … FROM STDIN: a write whose rows come from the client.
    CopyIn,
    /// COPY … TO STDOUT; the class of its query is the step's `inner`.
    CopyOut,
    /// COPY from a file or program of the server: a write.
    CopyFromServer,
    /// COPY to a file or program of the server.
    CopyToServer,
    /// LISTEN.
    Listen,
    /// NOTIFY.
    Notify,
    /// UNLISTEN.
    Unlisten,
    /// LOCK; every node.
    Lock,
    /// Changes what there is: CREATE, ALTER, DROP, GRANT, COMMENT, TRUNCATE, SELECT INTO and the like; every node.
    Ddl,
    /// Everything else: VACUUM, ANALYZE, CHECKPOINT, LOAD, SET CONSTRAINTS; every node.
    Utility,
}

/// The modes of a transaction, as far as a text names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Modes {
    /// ISOLATION LEVEL.
    pub isolation: Option<Isolation>,
    /// READ ONLY or READ WRITE.
    pub read_only: Option<bool>,
    /// DEFERRABLE or NOT DEFERRABLE.
    pub deferrable: Option<bool>,
}

/// Isolation levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// Taken for read committed by PostgreSQL.
    ReadUncommitted,
    /// One snapshot for each statement.
    ReadCommitted,
    /// One snapshot for the transaction.
    RepeatableRead,
    /// As if alone.
    Serializable,
}

/// May a statement stand in a transaction block?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Block {
    /// Yes.
    Allowed,
    /// No: PostgreSQL refuses it there, and in a string of several statements.
    Refused,
    /// Yes, but it may end the transaction when it is outside of a block (CALL, DO), and fails at that within one.
    MayCommit,
}

/// The class by the tree alone: what reads may turn out to write once the catalog is known.
pub(super) fn class(node: &NodeEnum) -> Class {
    match node {
        NodeEnum::SelectStmt(select) if select.into_clause.is_some() => Class::Ddl,
        NodeEnum::SelectStmt(_) => Class::Read,
        NodeEnum::InsertStmt(_) | NodeEnum::UpdateStmt(_) | NodeEnum::DeleteStmt(_) | NodeEnum::MergeStmt(_) => {
            Class::Write
        }
        NodeEnum::CallStmt(_) | NodeEnum::DoStmt(_) => Class::Write,
        NodeEnum::ExplainStmt(explain) => explained(explain),
        NodeEnum::TransactionStmt(statement) => transaction(statement),
        NodeEnum::VariableSetStmt(set) => setting(set),
        NodeEnum::VariableShowStmt(_) => Class::Show,
        NodeEnum::DiscardStmt(discard) => Class::Discard { all: discard.target == pb::DiscardMode::DiscardAll as i32 },
        NodeEnum::PrepareStmt(prepare) => Class::Prepare(prepare.name.clone()),
        NodeEnum::ExecuteStmt(execute) => Class::Execute(execute.name.clone()),
        NodeEnum::DeallocateStmt(one) => Class::Deallocate((!one.isall).then(|| one.name.clone())),
        NodeEnum::DeclareCursorStmt(declare) => {
            // CURSOR_OPT_HOLD of parsenodes.h.
            Class::Declare { name: declare.portalname.clone(), hold: declare.options & 0x20 != 0 }
        }
        NodeEnum::FetchStmt(fetch) => Class::Fetch(fetch.portalname.clone()),
        NodeEnum::ClosePortalStmt(close) => {
            Class::Close(Some(close.portalname.clone()).filter(|name| !name.is_empty()))
        }
        NodeEnum::CopyStmt(copy) => copied(copy),
        NodeEnum::ListenStmt(_) => Class::Listen,
        NodeEnum::NotifyStmt(_) => Class::Notify,
        NodeEnum::UnlistenStmt(_) => Class::Unlisten,
        NodeEnum::LockStmt(_) => Class::Lock,
        NodeEnum::VacuumStmt(_)
        | NodeEnum::CheckPointStmt(_)
        | NodeEnum::LoadStmt(_)
        | NodeEnum::ConstraintsSetStmt(_)
        | NodeEnum::ReindexStmt(_)
        | NodeEnum::ClusterStmt(_)
        | NodeEnum::AlterSystemStmt(_) => Class::Utility,
        _ => Class::Ddl,
    }
}

/// EXPLAIN runs its statement only with ANALYZE.
fn explained(explain: &pb::ExplainStmt) -> Class {
    let Some(query) = explain.query.as_ref().and_then(|query| query.node.as_ref()) else { return Class::Utility };
    if !option(&explain.options, "analyze") {
        return Class::Read;
    }
    match class(query) {
        Class::Read | Class::ReadAll => Class::Read,
        Class::Execute(name) => Class::Execute(name),
        _ => Class::Write,
    }
}

/// True when an option without a value, or with one that says yes, is in the list.
pub(super) fn option(options: &[pb::Node], wanted: &str) -> bool {
    let mut matching = options.iter().filter_map(|node| match node.node.as_ref()? {
        NodeEnum::DefElem(element) if element.defname.eq_ignore_ascii_case(wanted) => Some(element),
        _ => None,
    });
    matching.next_back().is_some_and(|element| match element.arg.as_ref().and_then(|arg| arg.node.as_ref()) {
        None => true,
        Some(NodeEnum::String(word)) => {
            !["off", "false", "no", "0"].iter().any(|no| word.sval.eq_ignore_ascii_case(no))
        }
        Some(NodeEnum::Integer(number)) => number.ival != 0,
        Some(NodeEnum::Boolean(value)) => value.boolval,
        Some(_) => true,
    })
}

fn transaction(statement: &pb::TransactionStmt) -> Class {
    match Tx::try_from(statement.kind).unwrap_or(Tx::Undefined) {
        Tx::TransStmtBegin | Tx::TransStmtStart => Class::Begin(modes(&statement.options)),
        Tx::TransStmtCommit => Class::Commit { chain: statement.chain },
        Tx::TransStmtRollback => Class::Rollback { chain: statement.chain },
        Tx::TransStmtSavepoint | Tx::TransStmtRelease | Tx::TransStmtRollbackTo => Class::Savepoint,
        Tx::TransStmtPrepare => Class::PrepareTransaction,
        Tx::TransStmtCommitPrepared | Tx::TransStmtRollbackPrepared => Class::FinishPrepared,
        Tx::Undefined => Class::Utility,
    }
}

fn setting(set: &pb::VariableSetStmt) -> Class {
    match SetKind::try_from(set.kind).unwrap_or(SetKind::Undefined) {
        SetKind::VarSetMulti if set.name == "TRANSACTION" => {
            Class::SetTransaction { modes: modes(&set.args), session: false }
        }
        SetKind::VarSetMulti if set.name == "SESSION CHARACTERISTICS" => {
            Class::SetTransaction { modes: modes(&set.args), session: true }
        }
        SetKind::VarResetAll => Class::Set { name: None, local: false },
        _ => Class::Set { name: Some(set.name.to_ascii_lowercase()), local: set.is_local },
    }
}

fn modes(options: &[pb::Node]) -> Modes {
    let mut modes = Modes::default();
    for node in options {
        let Some(NodeEnum::DefElem(element)) = node.node.as_ref() else { continue };
        let value = element.arg.as_ref().and_then(|arg| arg.node.as_ref());
        match element.defname.as_str() {
            "transaction_isolation" => modes.isolation = value.and_then(isolation),
            "transaction_read_only" => modes.read_only = value.and_then(yes),
            "transaction_deferrable" => modes.deferrable = value.and_then(yes),
            _ => {}
        }
    }
    modes
}

fn isolation(value: &NodeEnum) -> Option<Isolation> {
    let NodeEnum::AConst(constant) = value else { return None };
    let pb::a_const::Val::Sval(level) = constant.val.as_ref()? else { return None };
    match level.sval.as_str() {
        "read uncommitted" => Some(Isolation::ReadUncommitted),
        "read committed" => Some(Isolation::ReadCommitted),
        "repeatable read" => Some(Isolation::RepeatableRead),
        "serializable" => Some(Isolation::Serializable),
        _ => None,
    }
}

fn yes(value: &NodeEnum) -> Option<bool> {
    let NodeEnum::AConst(constant) = value else { return None };
    match constant.val.as_ref() {
        Some(pb::a_const::Val::Ival(number)) => Some(number.ival != 0),
        Some(pb::a_const::Val::Boolval(value)) => Some(value.boolval),
        // Zero is what protobuf leaves out.
        None => Some(false),
        _ => None,
    }
}

fn copied(copy: &pb::CopyStmt) -> Class {
    let server = copy.is_program || !copy.filename.is_empty();
    match (copy.is_from, server) {
        (true, false) => Class::CopyIn,
        (true, true) => Class::CopyFromServer,
        (false, false) => Class::CopyOut,
        (false, true) => Class::CopyToServer,
    }
}

/// May it stand in a transaction block? The list is PostgreSQL's `PreventInTransactionBlock`.
pub(super) fn block(node: &NodeEnum) -> Block {
    use pb::{AlterTableType, ObjectType, ReindexObjectType};
    let refused = match node {
        NodeEnum::CallStmt(_) | NodeEnum::DoStmt(_) => return Block::MayCommit,
        NodeEnum::VacuumStmt(vacuum) => vacuum.is_vacuumcmd,
        NodeEnum::ClusterStmt(cluster) => cluster.relation.is_none(),
        NodeEnum::CreatedbStmt(_)
        | NodeEnum::DropdbStmt(_)
        | NodeEnum::CreateTableSpaceStmt(_)
        | NodeEnum::DropTableSpaceStmt(_)
        | NodeEnum::AlterSystemStmt(_)
        | NodeEnum::CreateSubscriptionStmt(_)
        | NodeEnum::AlterSubscriptionStmt(_)
        | NodeEnum::DropSubscriptionStmt(_) => true,
        NodeEnum::AlterDatabaseStmt(alter) => alter.options.iter().any(
            |node| matches!(node.node.as_ref(), Some(NodeEnum::DefElem(element)) if element.defname == "tablespace"),
        ),
        NodeEnum::IndexStmt(index) => index.concurrent,
        NodeEnum::DropStmt(drop) => drop.concurrent && drop.remove_type == ObjectType::ObjectIndex as i32,
        NodeEnum::ReindexStmt(reindex) => {
            option(&reindex.params, "concurrently")
                || matches!(
                    ReindexObjectType::try_from(reindex.kind),
                    Ok(ReindexObjectType::ReindexObjectSchema
                        | ReindexObjectType::ReindexObjectSystem
                        | ReindexObjectType::ReindexObjectDatabase)
                )
        }
        NodeEnum::AlterTableStmt(alter) => alter.cmds.iter().any(|node| match node.node.as_ref() {
            Some(NodeEnum::AlterTableCmd(command)) if command.subtype == AlterTableType::AtDetachPartition as i32 => {
                matches!(command.def.as_ref().and_then(|def| def.node.as_ref()),
                    Some(NodeEnum::PartitionCmd(partition)) if partition.concurrent)
            }
            _ => false,
        }),
        NodeEnum::TransactionStmt(statement) => {
            matches!(Tx::try_from(statement.kind), Ok(Tx::TransStmtCommitPrepared | Tx::TransStmtRollbackPrepared))
        }
        NodeEnum::DiscardStmt(discard) => discard.target == pb::DiscardMode::DiscardAll as i32,
        _ => false,
    };
    if refused { Block::Refused } else { Block::Allowed }
}

/// The statement that another one holds and runs or keeps: of EXPLAIN, PREPARE, DECLARE, COPY and CREATE TABLE AS.
pub(super) fn inner_statement(node: &NodeEnum) -> Option<&NodeEnum> {
    let query = match node {
        NodeEnum::PrepareStmt(prepare) => &prepare.query,
        NodeEnum::DeclareCursorStmt(declare) => &declare.query,
        NodeEnum::CopyStmt(copy) => &copy.query,
        NodeEnum::CreateTableAsStmt(create) => &create.query,
        NodeEnum::ExplainStmt(explain) => &explain.query,
        _ => return None,
    };
    query.as_ref()?.node.as_ref()
}

/// True for the nodes that change rows, wherever in a statement they stand.
pub(super) fn changes_rows(node: NodeRef<'_>) -> bool {
    match node {
        NodeRef::InsertStmt(_) | NodeRef::UpdateStmt(_) | NodeRef::DeleteStmt(_) | NodeRef::MergeStmt(_) => true,
        NodeRef::SelectStmt(select) => select.into_clause.is_some(),
        _ => false,
    }
}

/// A name with its parts.
pub(super) fn parts(names: &[pb::Node]) -> Vec<&str> {
    names.iter().filter_map(string).collect()
}
