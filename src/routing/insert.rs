//! The shape of an INSERT: which columns it gives, and where a column that it leaves out can be added to its text.

use super::facts::{Given, given};
use super::moments::{Edit, string};
use super::name::Name;
use super::tokens::Tokens;
use super::tree::{children, inner};
use crate::base::identifier;
use pg_query::protobuf::{self as pb, Token};
use pg_query::{NodeEnum, NodeRef};
use std::ops::Range;

/// One INSERT, also the one of MERGE and the rows of COPY.
pub(super) struct Insert {
    pub relation: Name,
    /// The columns that it names; `None` when it names none and means all, in their order.
    pub columns: Option<Vec<String>>,
    /// OVERRIDING USER VALUE: identity columns take their numbers whatever is given.
    pub overriding_user: bool,
    /// How many values each row has, when that is known.
    pub width: Option<usize>,
    /// The relation of which a query gives all columns: `SELECT * FROM other`.
    pub star_of: Option<Name>,
    /// Values that are DEFAULT or name a moment: the number of the column among those given.
    pub given: Vec<(usize, Given, Range<usize>)>,
    /// The rows come from a query, which promises no order unless it says so.
    pub unordered: bool,
    /// Where columns and values are added; `None` when the text's shape does not allow it.
    pub places: Option<Places>,
}

/// Where a text takes another column.
pub(super) struct Places {
    /// Before the bracket that closes the list of columns, or where that list would stand.
    list: usize,
    /// Behind the last value of each row, or of each SELECT of the query; of a TABLE, that word, which gives way to a SELECT.
    /// Empty for DEFAULT VALUES.
    rows: Vec<Range<usize>>,
    /// `DEFAULT VALUES`, which gives way to a row.
    default_values: Option<Range<usize>>,
}

impl Insert {
    /// COPY … FROM: no text can be added to its rows.
    pub(super) fn copied(relation: Name, columns: Vec<String>) -> Insert {
        Insert {
            relation,
            columns: (!columns.is_empty()).then_some(columns),
            overriding_user: false,
            // Without a list a row of COPY has all columns.
            width: Some(usize::MAX),
            star_of: None,
            given: Vec::new(),
            unordered: false,
            places: None,
        }
    }
}

impl Places {
    /// The changes that add columns with their values. `named` are the columns that the text gives, to be written down when
    /// it has no list; `None` when it has one.
    pub(super) fn add(&self, named: Option<&[&str]>, added: &[(&str, String)]) -> Vec<Edit> {
        let names: Vec<String> = added.iter().map(|(name, _)| identifier(name)).collect();
        let values = added.iter().map(|(_, value)| value.as_str()).collect::<Vec<_>>().join(", ");
        if let Some(at) = &self.default_values {
            return vec![Edit { at: at.clone(), with: format!("({}) VALUES ({values})", names.join(", ")) }];
        }
        let list = match named {
            None => format!(", {}", names.join(", ")),
            Some(given) => {
                let all: Vec<String> = given.iter().map(|name| identifier(name)).chain(names).collect();
                format!(" ({})", all.join(", "))
            }
        };
        let mut edits = vec![Edit { at: self.list..self.list, with: list }];
        edits.extend(self.rows.iter().map(|row| Edit {
            at: row.clone(),
            with: if row.is_empty() { format!(", {values}") } else { format!("SELECT *, {values} FROM") },
        }));
        edits
    }
}

/// The shape of one INSERT statement.
pub(super) fn of(statement: &pb::InsertStmt, tokens: &Tokens) -> Option<Insert> {
    let relation = statement.relation.as_ref()?;
    let columns: Vec<String> = statement
        .cols
        .iter()
        .filter_map(|node| match inner(node)? {
            NodeEnum::ResTarget(target) => Some(target.name.clone()),
            _ => None,
        })
        .collect();
    let mut insert = Insert {
        relation: Name::of(relation),
        columns: (!columns.is_empty()).then_some(columns),
        overriding_user: statement.r#override == pb::OverridingKind::OverridingUserValue as i32,
        width: None,
        star_of: None,
        given: Vec::new(),
        unordered: false,
        places: None,
    };
    let head = head(relation, insert.columns.is_some(), tokens);
    let query = statement.select_stmt.as_ref().and_then(|select| inner(select));
    match query {
        None => {
            insert.width = Some(0);
            insert.places = head.and_then(|(list, next)| default_values(list, next, tokens));
        }
        Some(NodeEnum::SelectStmt(select)) if !select.values_lists.is_empty() => {
            rows(&mut insert, select, head, tokens);
        }
        Some(NodeEnum::SelectStmt(select)) => {
            insert.unordered = select.sort_clause.is_empty() && reads(select);
            query_items(&mut insert, select, head.map(|(list, _)| list), tokens);
        }
        Some(_) => {}
    }
    Some(insert)
}

/// INSERT of MERGE.
pub(super) fn merged(
    relation: &pb::RangeVar,
    clause: &pb::MergeWhenClause,
    places: Option<Places>,
    tokens: &Tokens,
) -> Insert {
    let columns: Vec<String> = clause
        .target_list
        .iter()
        .filter_map(|node| match inner(node)? {
            NodeEnum::ResTarget(target) => Some(target.name.clone()),
            _ => None,
        })
        .collect();
    let given = clause.values.iter().filter_map(inner).enumerate();
    Insert {
        relation: Name::of(relation),
        columns: (!columns.is_empty()).then_some(columns),
        overriding_user: clause.r#override == pb::OverridingKind::OverridingUserValue as i32,
        width: Some(clause.values.len()),
        star_of: None,
        given: given.filter_map(|(n, value)| given_at(n, value, tokens)).collect(),
        unordered: true,
        places,
    }
}

/// Where each INSERT of a MERGE takes another column, in their order; nothing where that is not certain. The tree does not
/// say where they stand.
pub(super) fn merge_places(merge: &pb::MergeStmt, within: &Range<usize>, tokens: &Tokens) -> Vec<Places> {
    let is_insert = |clause: &NodeEnum| match clause {
        NodeEnum::MergeWhenClause(clause) => clause.command_type == pb::CmdType::CmdInsert as i32,
        _ => false,
    };
    let wanted = merge.merge_when_clauses.iter().filter_map(inner).filter(|clause| is_insert(clause)).count();
    let words = tokens.after(within.start)..tokens.after(within.end);
    let begins = words.filter(|at| tokens.is(*at, Token::Then) && tokens.is(at + 1, Token::Insert));
    let places: Option<Vec<Places>> = begins.map(|at| merge_place(at + 1, tokens)).collect();
    places.filter(|places| places.len() == wanted).unwrap_or_default()
}

/// `insert`: the number of that word.
fn merge_place(insert: usize, tokens: &Tokens) -> Option<Places> {
    let mut next = insert + 1;
    let mut list = tokens.range(insert)?.end;
    if tokens.opens(next) {
        let close = tokens.closing(next)?;
        list = tokens.range(close)?.start;
        next = close + 1;
    }
    if tokens.is(next, Token::Default) {
        return default_values(list, next, tokens);
    }
    let rows = row_ends(next, 1, tokens)?;
    Some(Places { list, rows, default_values: None })
}

fn given_at(number: usize, value: &NodeEnum, tokens: &Tokens) -> Option<(usize, Given, Range<usize>)> {
    given(value, tokens).map(|(what, at)| (number, what, at))
}

/// Where a column is added to the list, and the number of the word behind the list.
fn head(relation: &pb::RangeVar, has_list: bool, tokens: &Tokens) -> Option<(usize, usize)> {
    let mut next = tokens.behind_name(tokens.at(usize::try_from(relation.location).ok()?)?);
    if tokens.is(next, Token::As) {
        next += 2;
    }
    if has_list {
        if !tokens.opens(next) {
            return None;
        }
        let close = tokens.closing(next)?;
        Some((tokens.range(close)?.start, close + 1))
    } else {
        Some((tokens.range(next.checked_sub(1)?)?.end, next))
    }
}

fn default_values(list: usize, next: usize, tokens: &Tokens) -> Option<Places> {
    let both = tokens.is(next, Token::Default) && tokens.is(next + 1, Token::Values);
    let range = both.then(|| Some(tokens.range(next)?.start..tokens.range(next + 1)?.end))??;
    Some(Places { list, rows: Vec::new(), default_values: Some(range) })
}

fn rows(insert: &mut Insert, select: &pb::SelectStmt, head: Option<(usize, usize)>, tokens: &Tokens) {
    let mut widths = Vec::new();
    for row in select.values_lists.iter().filter_map(inner) {
        let NodeEnum::List(row) = row else { continue };
        widths.push(row.items.len());
        let values = row.items.iter().filter_map(inner).enumerate();
        insert.given.extend(values.filter_map(|(n, value)| given_at(n, value, tokens)));
    }
    // All rows have as many values, or PostgreSQL refuses them.
    insert.width = widths.first().copied();
    insert.places = head.and_then(|(list, next)| {
        let rows = row_ends(next, widths.len(), tokens)?;
        Some(Places { list, rows, default_values: None })
    });
}

/// The closing bracket of each row behind VALUES.
fn row_ends(mut next: usize, rows: usize, tokens: &Tokens) -> Option<Vec<Range<usize>>> {
    while !tokens.is(next, Token::Values) {
        next = if tokens.opens(next) { tokens.closing(next)? + 1 } else { next + 1 };
        tokens.range(next)?;
    }
    let mut ends = Vec::with_capacity(rows.min(1024));
    next += 1;
    loop {
        if !tokens.opens(next) {
            return None;
        }
        let close = tokens.closing(next)?;
        let end = tokens.range(close)?.start;
        ends.push(end..end);
        if !tokens.comma(close + 1) {
            break;
        }
        next = close + 2;
    }
    (ends.len() == rows).then_some(ends)
}

/// The ends of the lists of each SELECT that a query consists of.
fn query_items(insert: &mut Insert, select: &pb::SelectStmt, list: Option<usize>, tokens: &Tokens) {
    let mut leaves = Vec::new();
    collect_leaves(select, &mut leaves);
    let mut ends = Vec::new();
    let mut widths = Vec::new();
    for leaf in &leaves {
        let last = leaf.target_list.last().and_then(inner);
        let end = match last {
            Some(NodeEnum::ResTarget(last)) if last.location >= 0 => {
                usize::try_from(last.location).ok().and_then(|at| tokens.item_end(at)).map(|end| end..end)
            }
            _ => table_word(leaf, tokens),
        };
        let star = leaf.target_list.iter().filter_map(inner).any(is_star);
        widths.push((!star && !leaf.target_list.is_empty()).then_some(leaf.target_list.len()));
        ends.push(end);
    }
    insert.width = widths.first().copied().flatten();
    insert.star_of = leaves.first().and_then(|leaf| star_of(leaf));
    let ends: Option<Vec<Range<usize>>> = ends.into_iter().collect();
    if let (Some(list), Some(rows)) = (list, ends) {
        insert.places = Some(Places { list, rows, default_values: None });
    }
    for leaf in &leaves {
        for (number, item) in leaf.target_list.iter().filter_map(inner).enumerate() {
            let NodeEnum::ResTarget(item) = item else { continue };
            let value = item.val.as_ref().and_then(|value| inner(value));
            let given = value.and_then(|value| given_at(number, value, tokens));
            // Within UNION the branches settle a literal's type among them.
            let given = given.map(|one| if leaves.len() > 1 { (one.0, Given::Phrase, one.2) } else { one });
            insert.given.extend(given);
        }
    }
}

/// The first word of `TABLE other`, whose list of columns stands nowhere.
fn table_word(select: &pb::SelectStmt, tokens: &Tokens) -> Option<Range<usize>> {
    let [from] = select.from_clause.as_slice() else { return None };
    let NodeEnum::RangeVar(relation) = inner(from)? else { return None };
    let mut before = tokens.at(usize::try_from(relation.location).ok()?)?.checked_sub(1)?;
    while tokens.opens(before) || tokens.is(before, Token::Only) {
        before = before.checked_sub(1)?;
    }
    tokens.range(before).filter(|_| tokens.is(before, Token::Table))
}

fn collect_leaves<'a>(select: &'a pb::SelectStmt, leaves: &mut Vec<&'a pb::SelectStmt>) {
    match (&select.larg, &select.rarg) {
        (Some(left), Some(right)) => {
            collect_leaves(left, leaves);
            collect_leaves(right, leaves);
        }
        _ => leaves.push(select),
    }
}

/// True when rows come from a relation: what functions and VALUES give has an order.
fn reads(select: &pb::SelectStmt) -> bool {
    if let (Some(left), Some(right)) = (&select.larg, &select.rarg) {
        // UNION sorts or hashes, but UNION ALL appends.
        return !select.all || reads(left) || reads(right);
    }
    let mut relation = false;
    select.from_clause.iter().filter_map(inner).for_each(|from| names_relation(from.to_ref(), &mut relation));
    relation
}

fn names_relation(node: NodeRef<'_>, found: &mut bool) {
    *found |= matches!(node, NodeRef::RangeVar(_));
    children(node, &mut |child| names_relation(child, found));
}

/// `SELECT * FROM other`, with nothing else in the list and in FROM.
fn star_of(select: &pb::SelectStmt) -> Option<Name> {
    let ([item], [from]) = (select.target_list.as_slice(), select.from_clause.as_slice()) else { return None };
    match inner(from)? {
        NodeEnum::RangeVar(relation) if is_star(inner(item)?) => Some(Name::of(relation)),
        _ => None,
    }
}

fn is_star(item: &NodeEnum) -> bool {
    let NodeEnum::ResTarget(item) = item else { return false };
    let Some(NodeEnum::ColumnRef(column)) = item.val.as_ref().and_then(|value| inner(value)) else { return false };
    column.fields.last().and_then(inner).is_some_and(|field| matches!(field, NodeEnum::AStar(_)))
        && column.fields.last().and_then(string).is_none()
}
