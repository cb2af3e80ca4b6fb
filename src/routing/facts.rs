//! Everything about one statement that a plan needs, gathered in one walk over its tree: calls, moments, relations, inserts.
//!
//! No tree is kept: facts are small, flat and refer to the text by offsets.

use super::class::{self, Block, Class};
use super::insert::{self, Insert};
use super::moments::{self, Edit, MomentWord, literal, string};
use super::name::Name;
use super::names::name_to_keep;
use super::tokens::Tokens;
use super::tree::{children, inner};
use pg_query::protobuf as pb;
use pg_query::{NodeEnum, NodeRef};
use std::ops::Range;

/// What is known of one statement.
pub(super) struct Facts {
    /// Its text, without the semicolon.
    pub range: Range<usize>,
    pub class: Class,
    pub inner: Option<Class>,
    pub block: Block,
    /// It stores what its expressions give.
    pub writes: bool,
    /// It takes row locks (FOR UPDATE and the like).
    pub locks_rows: bool,
    pub calls: Vec<Call>,
    pub relations: Vec<(Name, Use)>,
    pub inserts: Vec<Insert>,
    /// `SET column = DEFAULT` and `SET column = 'now'`.
    pub assigned: Vec<Assigned>,
    /// Moments that are rewritten, and the names that this makes necessary.
    pub edits: Vec<Edit>,
    /// What no catalog has to tell.
    pub hazards: Vec<Hazard>,
    /// Plain passwords.
    pub passwords: Vec<super::password::Found>,
}

/// A call of a function.
pub(super) struct Call {
    pub name: Name,
    pub arguments: usize,
    /// The first argument, when it is a literal.
    pub first: Option<String>,
    /// The first argument, when it is a whole number.
    pub number: Option<i64>,
    /// In the output of a statement that nothing reads but the client.
    pub only_shown: bool,
}

/// How a relation is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Use {
    Read,
    Insert,
    Update,
    Delete,
    Truncate,
    /// COPY … FROM: an insert that cannot be rewritten.
    Copy,
}

/// A column that is set to its default, or to a bare literal that names a moment.
pub(super) struct Assigned {
    pub relation: Name,
    pub column: String,
    pub at: Range<usize>,
    pub what: Given,
}

/// What a column is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Given {
    Default,
    Word(MomentWord),
    /// A literal in which a word for a moment stands among others.
    Phrase,
}

/// What makes nodes unequal whatever the catalog says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hazard {
    /// A moment in a place where it cannot be rewritten.
    Moment,
    /// A moment that is written into the definition of what is made, and into rows that are there already.
    MomentInDefinition,
    /// LIMIT without ORDER BY.
    LimitWithoutOrder,
    SkipLocked,
    /// `ctid`, `xmin` and the like.
    SystemColumn,
    TableSample,
    /// DO.
    Code,
    /// A file or program of the server.
    ServerFile,
    /// A literal that is a moment if what stands around makes it a date or time.
    BareWord,
    /// A table that is filled and rewritten row by row in the order in which rows happen to lie.
    Shape,
}

impl Facts {
    fn new(range: Range<usize>, node: &NodeEnum) -> Facts {
        let inner = match node {
            NodeEnum::PrepareStmt(_) | NodeEnum::DeclareCursorStmt(_) | NodeEnum::CopyStmt(_) => {
                class::inner_statement(node).map(class::class)
            }
            _ => None,
        };
        Facts {
            range,
            class: class::class(node),
            inner,
            block: class::block(node),
            writes: false,
            locks_rows: false,
            calls: Vec::new(),
            relations: Vec::new(),
            inserts: Vec::new(),
            assigned: Vec::new(),
            edits: Vec::new(),
            hazards: Vec::new(),
            passwords: super::password::none(),
        }
    }
}

/// Gathers the facts of one statement.
pub(super) fn of(node: &NodeEnum, range: Range<usize>, sql: &str, tokens: &Tokens) -> Facts {
    let mut walk = Walk {
        tokens,
        facts: Facts::new(range, node),
        depth: 0,
        only_shown: false,
        compares: false,
        exists: false,
        named: Vec::new(),
        written_at: -1,
    };
    walk.facts.passwords = super::password::found(node, tokens, sql);
    walk.statement(node);
    let facts = &mut walk.facts;
    facts.edits.sort_by_key(|edit| (edit.at.start, edit.at.end));
    facts.edits.dedup();
    // What is read under a name of WITH may not be the relation of that name.
    let named = std::mem::take(&mut walk.named);
    for insert in &mut facts.inserts {
        insert.star_of.take_if(|from| from.schema.is_none() && named.contains(&from.name));
    }
    facts.relations.sort();
    facts.relations.dedup();
    if facts.writes && matches!(facts.class, Class::Read) {
        facts.class = Class::Write;
    }
    if facts.writes && facts.inner == Some(Class::Read) {
        facts.inner = Some(Class::Write);
    }
    walk.facts
}

struct Walk<'t> {
    tokens: &'t Tokens,
    facts: Facts,
    /// How many statements stand around.
    depth: usize,
    /// In the RETURNING list of the outermost statement.
    only_shown: bool,
    /// Directly below an operator, call or choice, which gives a bare literal its type.
    compares: bool,
    /// Directly below EXISTS.
    exists: bool,
    /// The names of WITH, wherever they stand.
    named: Vec<String>,
    /// Where the name of the relation stands that an INSERT writes to: it does not read it.
    written_at: i32,
}

impl Walk<'_> {
    /// Statements whose expressions are run are walked through; those that only keep expressions are not.
    fn statement(&mut self, node: &NodeEnum) {
        match node {
            NodeEnum::DoStmt(_) => {
                self.facts.writes = true;
                self.hazard(Hazard::Code);
            }
            NodeEnum::ExplainStmt(explain) => {
                let run = class::option(&explain.options, "analyze");
                if let Some(query) = class::inner_statement(node) {
                    self.statement(query);
                }
                if !run {
                    self.facts.writes = false;
                    self.facts.locks_rows = false;
                    self.facts.inserts.clear();
                    self.facts.assigned.clear();
                    self.facts.hazards.clear();
                }
            }
            NodeEnum::CreateTableAsStmt(create) => self.created_as(create),
            NodeEnum::CopyStmt(copy) => self.copied(copy),
            NodeEnum::TruncateStmt(truncate) => {
                for relation in truncate.relations.iter().filter_map(inner) {
                    if let NodeEnum::RangeVar(relation) = relation {
                        self.facts.relations.push((Name::of(relation), Use::Truncate));
                    }
                }
            }
            NodeEnum::RefreshMatViewStmt(refresh) if !refresh.skip_data => {
                self.facts.writes = true;
                self.visit(node.to_ref());
            }
            NodeEnum::AlterTableStmt(alter) => self.altered(alter),
            NodeEnum::CallStmt(_) => {
                self.facts.writes = true;
                self.visit(node.to_ref());
            }
            NodeEnum::SelectStmt(_)
            | NodeEnum::InsertStmt(_)
            | NodeEnum::UpdateStmt(_)
            | NodeEnum::DeleteStmt(_)
            | NodeEnum::MergeStmt(_)
            | NodeEnum::PrepareStmt(_)
            | NodeEnum::ExecuteStmt(_)
            | NodeEnum::DeclareCursorStmt(_) => self.visit(node.to_ref()),
            _ => {}
        }
    }

    /// A view that is kept keeps its moments: they are run now and at every refresh.
    fn created_as(&mut self, create: &pb::CreateTableAsStmt) {
        let Some(query) = create.query.as_ref().and_then(|query| query.node.as_ref()) else { return };
        self.facts.writes = true;
        let before = self.facts.edits.len();
        self.visit(query.to_ref());
        if create.objtype == pb::ObjectType::ObjectMatview as i32 && self.facts.edits.len() > before {
            self.facts.edits.truncate(before);
            self.hazard(Hazard::MomentInDefinition);
        }
    }

    fn copied(&mut self, copy: &pb::CopyStmt) {
        if let Some(relation) = &copy.relation {
            let used = if copy.is_from { Use::Copy } else { Use::Read };
            self.facts.relations.push((Name::of(relation), used));
            if copy.is_from {
                let columns = copy.attlist.iter().filter_map(string).map(str::to_owned).collect::<Vec<_>>();
                self.facts.inserts.push(Insert::copied(Name::of(relation), columns));
            }
        }
        if copy.is_from {
            self.facts.writes = true;
        }
        if copy.is_program || !copy.filename.is_empty() {
            self.hazard(Hazard::ServerFile);
        }
        for node in [&copy.query, &copy.where_clause].into_iter().flatten().filter_map(|node| inner(node)) {
            self.visit(node.to_ref());
        }
    }

    /// USING of a changed type is run once; a default of a new column is run and kept.
    fn altered(&mut self, alter: &pb::AlterTableStmt) {
        use pb::AlterTableType::{AtAddColumn, AtAlterColumnType};
        for command in alter.cmds.iter().filter_map(inner) {
            let NodeEnum::AlterTableCmd(command) = command else { continue };
            let Some(definition) = command.def.as_ref().and_then(|def| def.node.as_ref()) else { continue };
            if command.subtype == AtAlterColumnType as i32 {
                self.facts.writes = true;
                self.visit(definition.to_ref());
            } else if command.subtype == AtAddColumn as i32 {
                self.facts.writes = true;
                let before = self.facts.edits.len();
                self.visit(definition.to_ref());
                if self.facts.edits.len() > before {
                    self.facts.edits.truncate(before);
                    self.hazard(Hazard::MomentInDefinition);
                }
                if let NodeEnum::ColumnDef(column) = definition
                    && numbers_rows(column)
                {
                    self.hazard(Hazard::Shape);
                }
            }
        }
    }

    fn visit(&mut self, node: NodeRef<'_>) {
        let compared = self.compares;
        self.compares = matches!(
            node,
            NodeRef::AExpr(_)
                | NodeRef::CoalesceExpr(_)
                | NodeRef::MinMaxExpr(_)
                | NodeRef::CaseExpr(_)
                | NodeRef::CaseWhen(_)
                | NodeRef::FuncCall(_)
        ) || (compared && matches!(node, NodeRef::List(_)));
        self.look(node, compared);
        self.compares = compared;
    }

    fn look(&mut self, node: NodeRef<'_>, compared: bool) {
        if class::changes_rows(node) {
            self.facts.writes = true;
        }
        match moments::rewritten(node, self.tokens) {
            Some(Some(edit)) => {
                self.facts.edits.push(edit);
                return;
            }
            Some(None) => {
                self.hazard(Hazard::Moment);
                return;
            }
            None => {}
        }
        match node {
            NodeRef::SelectStmt(select) => self.select(select),
            NodeRef::InsertStmt(insert) => self.insert(insert),
            NodeRef::UpdateStmt(update) => self.update(update),
            NodeRef::DeleteStmt(delete) => self.target(delete.relation.as_ref(), Use::Delete),
            NodeRef::MergeStmt(merge) => self.merge(merge),
            NodeRef::RangeVar(relation) if relation.location == self.written_at => {}
            NodeRef::RangeVar(relation) => self.facts.relations.push((Name::of(relation), Use::Read)),
            NodeRef::IntoClause(_) => return,
            // The row of `(a, b) = (x, y)` stands in the tree once for each column.
            NodeRef::MultiAssignRef(part) if part.colno != 1 => return,
            NodeRef::FuncCall(call) => self.call(call),
            NodeRef::RangeFunction(functions) => return self.functions(functions),
            NodeRef::ReturningClause(returning) => self.names(&returning.exprs),
            NodeRef::ColumnRef(column) => self.column(column),
            NodeRef::SubLink(link) => self.exists = link.sub_link_type == pb::SubLinkType::ExistsSublink as i32,
            NodeRef::CommonTableExpr(one) => self.named.push(one.ctename.clone()),
            NodeRef::RangeTableSample(_) => self.hazard(Hazard::TableSample),
            NodeRef::LockingClause(locking) => {
                self.facts.locks_rows = true;
                if locking.wait_policy == pb::LockWaitPolicy::LockWaitSkip as i32 {
                    self.hazard(Hazard::SkipLocked);
                }
            }
            NodeRef::AConst(_) if compared => self.constant(node),
            _ => {}
        }
        let statement = class::changes_rows(node) || matches!(node, NodeRef::SelectStmt(_));
        let shown = matches!(node, NodeRef::ReturningClause(_)) && self.depth == 1;
        let before = self.only_shown;
        self.only_shown |= shown;
        self.depth += usize::from(statement);
        children(node, &mut |child| self.visit(child));
        self.depth -= usize::from(statement);
        self.only_shown = before;
    }

    fn hazard(&mut self, hazard: Hazard) {
        if !self.facts.hazards.contains(&hazard) {
            self.facts.hazards.push(hazard);
        }
    }

    fn select(&mut self, select: &pb::SelectStmt) {
        self.names(&select.target_list);
        let exists = std::mem::take(&mut self.exists);
        let limited = !exists && (select.limit_count.is_some() || select.limit_offset.is_some());
        if limited && select.sort_clause.is_empty() && !select.from_clause.is_empty() {
            self.hazard(Hazard::LimitWithoutOrder);
        }
    }

    /// Keeps the names of columns that get none in the text and would be named after the rewritten expression.
    fn names(&mut self, items: &[pb::Node]) {
        for item in items.iter().filter_map(inner) {
            let NodeEnum::ResTarget(target) = item else { continue };
            let Some(expression) = target.val.as_ref().and_then(|val| val.node.as_ref()) else { continue };
            let Some(name) = target.name.is_empty().then(|| name_to_keep(expression)).flatten() else { continue };
            let end = usize::try_from(target.location).ok().and_then(|at| self.tokens.item_end(at));
            match end {
                Some(end) => self.facts.edits.push(Edit { at: end..end, with: format!(" AS \"{name}\"") }),
                None => self.hazard(Hazard::Moment),
            }
        }
    }

    fn target(&mut self, relation: Option<&pb::RangeVar>, used: Use) {
        if let Some(relation) = relation {
            self.facts.relations.push((Name::of(relation), used));
        }
    }

    fn insert(&mut self, statement: &pb::InsertStmt) {
        self.target(statement.relation.as_ref(), Use::Insert);
        self.written_at = statement.relation.as_ref().map_or(-1, |relation| relation.location);
        if let Some(insert) = insert::of(statement, self.tokens) {
            self.facts.inserts.push(insert);
        }
        if let (Some(relation), Some(conflict)) = (&statement.relation, &statement.on_conflict_clause) {
            if !conflict.target_list.is_empty() {
                self.target(Some(relation), Use::Update);
            }
            self.assigned(relation, &conflict.target_list);
        }
    }

    fn update(&mut self, statement: &pb::UpdateStmt) {
        self.target(statement.relation.as_ref(), Use::Update);
        if let Some(relation) = &statement.relation {
            self.assigned(relation, &statement.target_list);
        }
    }

    fn merge(&mut self, merge: &pb::MergeStmt) {
        let Some(relation) = &merge.relation else { return };
        for clause in merge.merge_when_clauses.iter().filter_map(inner) {
            let NodeEnum::MergeWhenClause(clause) = clause else { continue };
            match pb::CmdType::try_from(clause.command_type) {
                Ok(pb::CmdType::CmdInsert) => {
                    self.target(Some(relation), Use::Insert);
                    self.facts.inserts.push(insert::merged(relation, clause, self.tokens));
                }
                Ok(pb::CmdType::CmdUpdate) => {
                    self.target(Some(relation), Use::Update);
                    self.assigned(relation, &clause.target_list);
                }
                Ok(pb::CmdType::CmdDelete) => self.target(Some(relation), Use::Delete),
                _ => {}
            }
        }
    }

    /// `SET a = DEFAULT`, `SET (a, b) = (DEFAULT, 'now')`.
    fn assigned(&mut self, relation: &pb::RangeVar, targets: &[pb::Node]) {
        for target in targets.iter().filter_map(inner) {
            let NodeEnum::ResTarget(target) = target else { continue };
            let Some(value) = target.val.as_ref().and_then(|val| val.node.as_ref()) else { continue };
            let value = match value {
                NodeEnum::MultiAssignRef(part) => part_of_row(part),
                value => Some(value),
            };
            let Some((what, at)) = value.and_then(|value| given(value, self.tokens)) else { continue };
            let column = target.name.clone();
            self.facts.assigned.push(Assigned { relation: Name::of(relation), column, at, what });
        }
    }

    fn call(&mut self, call: &pb::FuncCall) {
        let first = call.args.first().and_then(|arg| arg.node.as_ref());
        let text = first.and_then(|first| match first {
            NodeEnum::TypeCast(cast) => cast.arg.as_ref().and_then(|arg| arg.node.as_ref()).and_then(literal),
            first => literal(first),
        });
        let name = Name::from_parts(&class::parts(&call.funcname));
        self.facts.calls.push(Call {
            name,
            arguments: call.args.len(),
            first: text.map(|(text, _)| text.to_owned()),
            number: first.and_then(number),
            only_shown: self.only_shown,
        });
    }

    /// A function in FROM cannot become an expression; its arguments can.
    fn functions(&mut self, functions: &pb::RangeFunction) {
        for function in functions.functions.iter().filter_map(inner) {
            let NodeEnum::List(list) = function else { continue };
            for node in list.items.iter().filter_map(inner) {
                match node {
                    NodeEnum::FuncCall(call) if !moments::is_now(call) => {
                        self.call(call);
                        children(node.to_ref(), &mut |child| self.visit(child));
                    }
                    NodeEnum::FuncCall(_) | NodeEnum::SqlvalueFunction(_) | NodeEnum::TypeCast(_) => {
                        if moments::rewritten(node.to_ref(), self.tokens).is_some() {
                            self.hazard(Hazard::Moment);
                        }
                    }
                    node => self.visit(node.to_ref()),
                }
            }
        }
    }

    fn column(&mut self, column: &pb::ColumnRef) {
        let last = column.fields.last().and_then(string);
        if !self.only_shown && last.is_some_and(|name| matches!(name, "ctid" | "xmin" | "xmax" | "cmin" | "cmax")) {
            self.hazard(Hazard::SystemColumn);
        }
    }

    /// `WHERE day < 'today'`: whether it is a moment depends on types that only the server knows.
    fn constant(&mut self, node: NodeRef<'_>) {
        if let NodeRef::AConst(constant) = node
            && let Some(pb::a_const::Val::Sval(text)) = &constant.val
            && MomentWord::of(&text.sval).is_some()
        {
            self.hazard(Hazard::BareWord);
        }
    }
}

/// `serial` and identity columns number the rows that are there in the order in which they lie.
fn numbers_rows(column: &pb::ColumnDef) -> bool {
    let type_name = column.type_name.as_ref().and_then(moments::plain_type).unwrap_or_default();
    matches!(type_name, "serial" | "serial4" | "bigserial" | "serial8" | "smallserial" | "serial2")
        || column.constraints.iter().filter_map(inner).any(|constraint| {
            matches!(constraint, NodeEnum::Constraint(c) if c.contype == pb::ConstrType::ConstrIdentity as i32)
        })
}

/// The expression of one column of `(a, b) = (x, y)`.
fn part_of_row(part: &pb::MultiAssignRef) -> Option<&NodeEnum> {
    let NodeEnum::RowExpr(row) = part.source.as_ref()?.node.as_ref()? else { return None };
    let index = usize::try_from(part.colno).ok()?.checked_sub(1)?;
    row.args.get(index)?.node.as_ref()
}

/// Whether a column is given its default or a bare moment, and where that stands.
pub(super) fn given(value: &NodeEnum, tokens: &Tokens) -> Option<(Given, Range<usize>)> {
    match value {
        NodeEnum::SetToDefault(default) => {
            let at = tokens.at(usize::try_from(default.location).ok()?)?;
            Some((Given::Default, tokens.range(at)?))
        }
        value => {
            let (text, at) = literal(value)?;
            let range = tokens.literal(at)?;
            match MomentWord::of(text) {
                Some(word) => Some((Given::Word(word), range)),
                None => moments::names_a_moment(text).then_some((Given::Phrase, range)),
            }
        }
    }
}

fn number(node: &NodeEnum) -> Option<i64> {
    let NodeEnum::AConst(constant) = node else { return None };
    match constant.val.as_ref()? {
        pb::a_const::Val::Ival(number) => Some(i64::from(number.ival)),
        _ => None,
    }
}
