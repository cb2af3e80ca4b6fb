//! One walk over the tree of a statement, which gathers its facts.

use super::class::{self, Class};
use super::facts::{Assigned, Call, Facts, Hazard, Use, given};
use super::insert::{self, Insert};
use super::large;
use super::moments::{self, Edit, MomentWord, literal, string};
use super::name::Name;
use super::names::name_to_keep;
use super::tokens::Tokens;
use super::tree::{children, inner};
use pg_query::protobuf as pb;
use pg_query::{NodeEnum, NodeRef};
use std::ops::Range;

/// Gathers the facts of one statement.
pub(super) fn gathered(node: &NodeEnum, range: Range<usize>, sql: &str, tokens: &Tokens) -> Facts {
    let mut walk = Walk {
        tokens,
        facts: Facts::new(range, node),
        depth: 0,
        only_shown: false,
        compares: false,
        exists: false,
        repeats: false,
        named: Vec::new(),
        written_at: -1,
        drawn_at: Vec::new(),
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
    /// What stands here may run more than once: for each row, or in a definition.
    repeats: bool,
    /// The names of WITH, wherever they stand.
    named: Vec<String>,
    /// Where the name of the relation stands that an INSERT writes to: it does not read it.
    written_at: i32,
    /// Where the calls stand that get the number of a large object.
    drawn_at: Vec<i32>,
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
            NodeEnum::ExecuteStmt(execute) => {
                // What it runs may store what it is given, and may have calls of its own that get numbers.
                self.facts.writes = true;
                self.repeats = true;
                let texts = execute.params.iter().filter_map(inner).filter_map(literal);
                if texts.into_iter().any(|(text, _)| moments::may_be_moment(text.as_bytes())) {
                    self.hazard(Hazard::BareWord);
                }
                self.visit(node.to_ref());
            }
            NodeEnum::SelectStmt(_)
            | NodeEnum::InsertStmt(_)
            | NodeEnum::UpdateStmt(_)
            | NodeEnum::DeleteStmt(_)
            | NodeEnum::MergeStmt(_)
            | NodeEnum::PrepareStmt(_)
            | NodeEnum::DeclareCursorStmt(_) => self.visit(node.to_ref()),
            _ => {}
        }
    }

    /// A view that is kept keeps its moments: they are run now and at every refresh.
    fn created_as(&mut self, create: &pb::CreateTableAsStmt) {
        let Some(query) = create.query.as_ref().and_then(|query| query.node.as_ref()) else { return };
        self.facts.writes = true;
        let before = self.facts.edits.len();
        self.repeats = create.objtype == pb::ObjectType::ObjectMatview as i32;
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
        self.repeats = true;
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
        let repeats = self.repeats;
        self.only_shown |= shown;
        self.repeats |= runs_for_rows(node);
        self.depth += usize::from(statement);
        children(node, &mut |child| self.visit(child));
        self.depth -= usize::from(statement);
        self.only_shown = before;
        self.repeats = repeats;
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
        let mut places = insert::merge_places(merge, &self.facts.range, self.tokens).into_iter();
        for clause in merge.merge_when_clauses.iter().filter_map(inner) {
            let NodeEnum::MergeWhenClause(clause) = clause else { continue };
            match pb::CmdType::try_from(clause.command_type) {
                Ok(pb::CmdType::CmdInsert) => {
                    self.target(Some(relation), Use::Insert);
                    let places = places.next();
                    self.facts.inserts.push(insert::merged(relation, clause, places, self.tokens));
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
        let drawn = self.drawn(call);
        self.facts.calls.push(Call {
            name,
            arguments: call.args.len(),
            first: text.map(|(text, _)| text.to_owned()),
            number: first.and_then(number),
            only_shown: self.only_shown,
            drawn,
        });
    }

    /// True when the call makes a large object and gets its number with the statement. One setting holds one number.
    fn drawn(&mut self, call: &pb::FuncCall) -> bool {
        if self.repeats || self.drawn_at.len() >= large::MAX_CALLS {
            return false;
        }
        let Some(edit) = large::rewritten(call, self.drawn_at.len() + 1, self.tokens) else { return false };
        if !self.drawn_at.contains(&call.location) {
            self.drawn_at.push(call.location);
            self.facts.numbers = self.drawn_at.len();
            self.facts.edits.push(edit);
        }
        true
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

/// What stands below may be run for each row that there is.
fn runs_for_rows(node: NodeRef<'_>) -> bool {
    match node {
        NodeRef::SelectStmt(select) => !select.from_clause.is_empty(),
        NodeRef::UpdateStmt(_)
        | NodeRef::DeleteStmt(_)
        | NodeRef::MergeStmt(_)
        | NodeRef::OnConflictClause(_)
        | NodeRef::ReturningClause(_) => true,
        _ => false,
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

fn number(node: &NodeEnum) -> Option<i64> {
    let NodeEnum::AConst(constant) = node else { return None };
    match constant.val.as_ref()? {
        pb::a_const::Val::Ival(number) => Some(i64::from(number.ival)),
        _ => None,
    }
}
