//! The nodes directly below a node of a parse tree: one table for all kinds of nodes that PostgreSQL's grammar makes.
//!
//! Left out are the kinds that only analysis makes, lists that hold nothing but names, and the names after
//! `FOR UPDATE OF`, which are aliases. `tree_tests.rs` holds the table against the serialised form of real trees.

use pg_query::{NodeEnum, NodeRef, protobuf as pb};

/// A row: the kind, its lists of nodes, its optional nodes, its optional structs.
macro_rules! table {
    ($($kind:ident { [$($list:ident)*] [$($node:ident)*] [$($one:ident: $one_kind:ident)*] })*) => {
        /// Calls `each` with every node directly below `node`, in the order of the statement as far as the table goes.
        pub(super) fn children<'a>(node: NodeRef<'a>, each: &mut dyn FnMut(NodeRef<'a>)) {
            match node {
                $(NodeRef::$kind(n) => {
                    $(n.$one.iter().for_each(|one| each(NodeRef::$one_kind(one)));)*
                    $(n.$list.iter().filter_map(inner).for_each(|node| each(node.to_ref()));)*
                    $(n.$node.iter().filter_map(|node| inner(node)).for_each(|node| each(node.to_ref()));)*
                })*
                _ => {}
            }
        }
    };
}

/// What a node wraps.
pub(super) fn inner(node: &pb::Node) -> Option<&NodeEnum> {
    node.node.as_ref()
}

table! {
    List { [items] [] [] }
    OidList { [items] [] [] }
    IntList { [items] [] [] }
    IntoClause { [col_names options] [] [rel: RangeVar] }
    GroupingFunc { [args] [] [] }
    NamedArgExpr { [] [arg] [] }
    BoolExpr { [args] [] [] }
    SubLink { [] [testexpr subselect] [] }
    CaseExpr { [args] [arg defresult] [] }
    CaseWhen { [] [expr result] [] }
    RowExpr { [args] [] [] }
    CoalesceExpr { [args] [] [] }
    MinMaxExpr { [args] [] [] }
    XmlExpr { [named_args arg_names args] [] [] }
    JsonValueExpr { [] [raw_expr formatted_expr] [] }
    JsonIsPredicate { [] [expr] [] }
    JsonBehavior { [] [expr] [] }
    NullTest { [] [arg] [] }
    BooleanTest { [] [arg] [] }
    JoinExpr { [] [larg rarg quals] [] }
    TypeName { [typmods] [] [] }
    AExpr { [] [lexpr rexpr] [] }
    TypeCast { [] [arg] [type_name: TypeName] }
    CollateClause { [] [arg] [] }
    FuncCall { [args agg_order] [agg_filter] [over: WindowDef] }
    AIndices { [] [lidx uidx] [] }
    AIndirection { [indirection] [arg] [] }
    AArrayExpr { [elements] [] [] }
    ResTarget { [indirection] [val] [] }
    MultiAssignRef { [] [source] [] }
    SortBy { [] [node] [] }
    WindowDef { [partition_clause order_clause] [start_offset end_offset] [] }
    RangeSubselect { [] [subquery] [] }
    RangeFunction { [functions coldeflist] [] [] }
    RangeTableFunc { [namespaces columns] [docexpr rowexpr] [] }
    RangeTableFuncCol { [] [colexpr coldefexpr] [type_name: TypeName] }
    RangeTableSample { [method args] [relation repeatable] [] }
    ColumnDef { [constraints fdwoptions] [raw_default] [type_name: TypeName identity_sequence: RangeVar coll_clause: CollateClause] }
    TableLikeClause { [] [] [relation: RangeVar] }
    IndexElem { [opclassopts] [expr] [] }
    DefElem { [] [arg] [] }
    XmlSerialize { [] [expr] [type_name: TypeName] }
    PartitionElem { [] [expr] [] }
    PartitionSpec { [part_params] [] [] }
    PartitionBoundSpec { [listdatums lowerdatums upperdatums] [] [] }
    PartitionRangeDatum { [] [value] [] }
    PartitionCmd { [] [] [name: RangeVar bound: PartitionBoundSpec] }
    GroupingSet { [content] [] [] }
    WithClause { [ctes] [] [] }
    InferClause { [index_elems] [where_clause] [] }
    OnConflictClause { [target_list] [where_clause] [infer: InferClause] }
    CtecycleClause { [] [cycle_mark_value cycle_mark_default] [] }
    CommonTableExpr { [] [ctequery] [search_clause: CtesearchClause cycle_clause: CtecycleClause] }
    MergeWhenClause { [target_list values] [condition] [] }
    ReturningClause { [options exprs] [] [] }
    JsonOutput { [] [] [type_name: TypeName] }
    JsonArgument { [] [] [val: JsonValueExpr] }
    JsonFuncExpr { [passing] [pathspec] [context_item: JsonValueExpr output: JsonOutput on_empty: JsonBehavior on_error: JsonBehavior] }
    JsonTablePathSpec { [] [string] [] }
    JsonTable { [passing columns] [] [context_item: JsonValueExpr pathspec: JsonTablePathSpec on_error: JsonBehavior] }
    JsonTableColumn { [columns] [] [type_name: TypeName pathspec: JsonTablePathSpec on_empty: JsonBehavior on_error: JsonBehavior] }
    JsonKeyValue { [] [key] [value: JsonValueExpr] }
    JsonParseExpr { [] [] [expr: JsonValueExpr output: JsonOutput] }
    JsonScalarExpr { [] [expr] [output: JsonOutput] }
    JsonSerializeExpr { [] [] [expr: JsonValueExpr output: JsonOutput] }
    JsonObjectConstructor { [exprs] [] [output: JsonOutput] }
    JsonArrayConstructor { [exprs] [] [output: JsonOutput] }
    JsonArrayQueryConstructor { [] [query] [output: JsonOutput] }
    JsonAggConstructor { [agg_order] [agg_filter] [output: JsonOutput over: WindowDef] }
    JsonObjectAgg { [] [] [constructor: JsonAggConstructor arg: JsonKeyValue] }
    JsonArrayAgg { [] [] [constructor: JsonAggConstructor arg: JsonValueExpr] }
    RawStmt { [] [stmt] [] }
    InsertStmt { [cols] [select_stmt] [relation: RangeVar on_conflict_clause: OnConflictClause returning_clause: ReturningClause with_clause: WithClause] }
    DeleteStmt { [using_clause] [where_clause] [relation: RangeVar returning_clause: ReturningClause with_clause: WithClause] }
    UpdateStmt { [target_list from_clause] [where_clause] [relation: RangeVar returning_clause: ReturningClause with_clause: WithClause] }
    MergeStmt { [merge_when_clauses] [source_relation join_condition] [relation: RangeVar returning_clause: ReturningClause with_clause: WithClause] }
    SelectStmt { [distinct_clause target_list from_clause group_clause window_clause values_lists sort_clause locking_clause] [where_clause having_clause limit_offset limit_count] [into_clause: IntoClause with_clause: WithClause larg: SelectStmt rarg: SelectStmt] }
    ReturnStmt { [] [returnval] [] }
    PlassignStmt { [indirection] [] [val: SelectStmt] }
    CreateSchemaStmt { [schema_elts] [] [] }
    AlterTableStmt { [cmds] [] [relation: RangeVar] }
    AlterTableCmd { [] [def] [] }
    AlterDomainStmt { [type_name] [def] [] }
    GrantStmt { [objects privileges] [] [] }
    ObjectWithArgs { [objargs objfuncargs] [] [] }
    AccessPriv { [cols] [] [] }
    GrantRoleStmt { [opt] [] [] }
    AlterDefaultPrivilegesStmt { [options] [] [action: GrantStmt] }
    CopyStmt { [attlist options] [query where_clause] [relation: RangeVar] }
    VariableSetStmt { [args] [] [] }
    CreateStmt { [table_elts inh_relations constraints nnconstraints options] [] [relation: RangeVar partbound: PartitionBoundSpec partspec: PartitionSpec of_typename: TypeName] }
    Constraint { [exclusions options] [raw_expr where_clause] [pktable: RangeVar] }
    CreateTableSpaceStmt { [options] [] [] }
    AlterTableSpaceOptionsStmt { [options] [] [] }
    CreateExtensionStmt { [options] [] [] }
    AlterExtensionStmt { [options] [] [] }
    AlterExtensionContentsStmt { [] [object] [] }
    CreateFdwStmt { [func_options options] [] [] }
    AlterFdwStmt { [func_options options] [] [] }
    CreateForeignServerStmt { [options] [] [] }
    AlterForeignServerStmt { [options] [] [] }
    CreateForeignTableStmt { [options] [] [base_stmt: CreateStmt] }
    CreateUserMappingStmt { [options] [] [] }
    AlterUserMappingStmt { [options] [] [] }
    ImportForeignSchemaStmt { [table_list options] [] [] }
    CreatePolicyStmt { [] [qual with_check] [table: RangeVar] }
    AlterPolicyStmt { [] [qual with_check] [table: RangeVar] }
    CreateTrigStmt { [args columns transition_rels] [when_clause] [relation: RangeVar constrrel: RangeVar] }
    CreateEventTrigStmt { [whenclause] [] [] }
    CreateRoleStmt { [options] [] [] }
    AlterRoleStmt { [options] [] [role: RoleSpec] }
    AlterRoleSetStmt { [] [] [setstmt: VariableSetStmt] }
    CreateSeqStmt { [options] [] [sequence: RangeVar] }
    AlterSeqStmt { [options] [] [sequence: RangeVar] }
    DefineStmt { [args definition] [] [] }
    CreateDomainStmt { [constraints] [] [type_name: TypeName coll_clause: CollateClause] }
    CreateOpClassStmt { [items] [] [datatype: TypeName] }
    CreateOpClassItem { [order_family class_args] [] [storedtype: TypeName] }
    AlterOpFamilyStmt { [items] [] [] }
    DropStmt { [objects] [] [] }
    TruncateStmt { [relations] [] [] }
    CommentStmt { [] [object] [] }
    SecLabelStmt { [] [object] [] }
    DeclareCursorStmt { [] [query] [] }
    IndexStmt { [index_params index_including_params options] [where_clause] [relation: RangeVar] }
    CreateStatsStmt { [stat_types exprs relations] [] [] }
    StatsElem { [] [expr] [] }
    AlterStatsStmt { [] [stxstattarget] [] }
    CreateFunctionStmt { [parameters options] [sql_body] [return_type: TypeName] }
    FunctionParameter { [] [defexpr] [arg_type: TypeName] }
    AlterFunctionStmt { [actions] [] [func: ObjectWithArgs] }
    DoStmt { [args] [] [] }
    CallStmt { [outargs] [] [funccall: FuncCall] }
    RenameStmt { [] [object] [relation: RangeVar] }
    AlterObjectDependsStmt { [] [object] [relation: RangeVar] }
    AlterObjectSchemaStmt { [] [object] [relation: RangeVar] }
    AlterOwnerStmt { [] [object] [relation: RangeVar] }
    AlterOperatorStmt { [options] [] [opername: ObjectWithArgs] }
    AlterTypeStmt { [type_name options] [] [] }
    RuleStmt { [actions] [where_clause] [relation: RangeVar] }
    TransactionStmt { [options] [] [] }
    CompositeTypeStmt { [coldeflist] [] [typevar: RangeVar] }
    CreateEnumStmt { [type_name] [] [] }
    CreateRangeStmt { [type_name params] [] [] }
    AlterEnumStmt { [type_name] [] [] }
    ViewStmt { [options] [query] [view: RangeVar] }
    CreatedbStmt { [options] [] [] }
    AlterDatabaseStmt { [options] [] [] }
    AlterDatabaseSetStmt { [] [] [setstmt: VariableSetStmt] }
    DropdbStmt { [options] [] [] }
    AlterSystemStmt { [] [] [setstmt: VariableSetStmt] }
    ClusterStmt { [params] [] [relation: RangeVar] }
    VacuumStmt { [options rels] [] [] }
    VacuumRelation { [] [] [relation: RangeVar] }
    ExplainStmt { [options] [query] [] }
    CreateTableAsStmt { [] [query] [into: IntoClause] }
    RefreshMatViewStmt { [] [] [relation: RangeVar] }
    LockStmt { [relations] [] [] }
    ConstraintsSetStmt { [constraints] [] [] }
    ReindexStmt { [params] [] [relation: RangeVar] }
    CreateCastStmt { [] [] [sourcetype: TypeName targettype: TypeName func: ObjectWithArgs] }
    CreateTransformStmt { [] [] [type_name: TypeName fromsql: ObjectWithArgs tosql: ObjectWithArgs] }
    PrepareStmt { [argtypes] [query] [] }
    ExecuteStmt { [params] [] [] }
    AlterTsdictionaryStmt { [options] [] [] }
    PublicationTable { [columns] [where_clause] [relation: RangeVar] }
    PublicationObjSpec { [] [] [pubtable: PublicationTable] }
    CreatePublicationStmt { [options pubobjects] [] [] }
    AlterPublicationStmt { [options pubobjects] [] [] }
    CreateSubscriptionStmt { [options] [] [] }
    AlterSubscriptionStmt { [options] [] [] }
}
