//! Hooks into other people's statements. They let a statement pass without a guard around it, because a guard copies only part
//! of an error: nothing with a destructor lives across the call, and what can panic is in a guarded function of its own.

use crate::pg::{compat, transaction, writes};
use pgrx::pg_sys;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::atomic::{AtomicBool, Ordering};

static mut PREVIOUS_UTILITY: pg_sys::ProcessUtility_hook_type = None;
static mut PREVIOUS_OBJECT_ACCESS: pg_sys::object_access_hook_type = None;
static mut LISTENERS: Option<Listeners> = None;
/// Whether the statement that drops things may drop the extension.
static MAY_DROP: AtomicBool = AtomicBool::new(false);

/// Who wants to know.
#[derive(Clone, Copy)]
pub struct Listeners {
    /// Before a command that needs a database without connections, with that database's name; may raise.
    pub database_command: fn(&CStr),
    /// Before DROP EXTENSION of this extension; may raise.
    pub drop_extension: fn(),
    /// This extension is being dropped because something else is, which it was not meant to go with; raises.
    pub swept_away: fn(),
    /// An extension is being created (`true`) or dropped; must not raise or panic.
    pub extension: fn(bool),
    /// A database may have come or gone; must not raise or panic.
    pub databases_changed: fn(),
    /// The transaction has committed (`true`) or was rolled back; must not raise.
    pub transaction_end: fn(bool),
}

/// Installs the hooks. Only while libraries are preloaded.
pub fn install(listeners: Listeners) {
    // SAFETY: the postmaster is single threaded; the pointers are set once, each chains to the one before.
    unsafe {
        LISTENERS = Some(listeners);
        PREVIOUS_UTILITY = pg_sys::ProcessUtility_hook;
        pg_sys::ProcessUtility_hook = Some(process_utility);
    }
}

fn listeners() -> Option<Listeners> {
    // SAFETY: written once before any other process exists.
    unsafe { LISTENERS }
}

unsafe extern "C-unwind" {
    // Not pgrx's: those are guarded, and a guard loses fields of an error that passes.
    fn standard_ProcessUtility(
        statement: *mut pg_sys::PlannedStmt,
        query: *const c_char,
        read_only_tree: bool,
        context: pg_sys::ProcessUtilityContext::Type,
        parameters: pg_sys::ParamListInfo,
        environment: *mut pg_sys::QueryEnvironment,
        receiver: *mut pg_sys::DestReceiver,
        completion: *mut pg_sys::QueryCompletion,
    );
}

/// Unguarded trampoline: one comparison for statements that are none of our business.
#[allow(clippy::too_many_arguments)]
unsafe extern "C-unwind" fn process_utility(
    statement: *mut pg_sys::PlannedStmt,
    query: *const c_char,
    read_only_tree: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    parameters: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
    receiver: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
) {
    // SAFETY: the arguments are passed on as they came; `before_database_command` is guarded and only reads the statement.
    unsafe {
        if matches!(
            (*(*statement).utilityStmt).type_,
            pg_sys::NodeTag::T_DropdbStmt
                | pg_sys::NodeTag::T_RenameStmt
                | pg_sys::NodeTag::T_AlterDatabaseStmt
                | pg_sys::NodeTag::T_CreatedbStmt
                | pg_sys::NodeTag::T_TransactionStmt
                | pg_sys::NodeTag::T_DropStmt
                | pg_sys::NodeTag::T_DropOwnedStmt
        ) {
            before_database_command((*statement).utilityStmt);
        }
        let changes = writes::changes_of((*statement).utilityStmt);
        let before = writes::command_begins(changes);
        // Every call of a function pays for that hook where it is there.
        let watches = changes != 0 && watch_objects();
        match PREVIOUS_UTILITY {
            Some(previous) => previous(
                statement,
                query,
                read_only_tree,
                context,
                parameters,
                environment,
                receiver,
                completion,
            ),
            None => standard_ProcessUtility(
                statement,
                query,
                read_only_tree,
                context,
                parameters,
                environment,
                receiver,
                completion,
            ),
        }
        // After an error the end of the transaction does that.
        writes::command_ends(before);
        if watches {
            pg_sys::object_access_hook = PREVIOUS_OBJECT_ACCESS;
        }
    }
}

fn databases_changed() {
    if let Some(listeners) = listeners() {
        (listeners.databases_changed)();
    }
}

/// Finds out which database must have no connections, and says so.
#[pgrx::pg_guard]
unsafe extern "C-unwind" fn before_database_command(statement: *mut pg_sys::Node) {
    // SAFETY: the tag says which structure it is; strings of a parse tree are zero-terminated or null.
    unsafe {
        let name: *const c_char = match (*statement).type_ {
            pg_sys::NodeTag::T_DropdbStmt => {
                databases_changed();
                (*statement.cast::<pg_sys::DropdbStmt>()).dbname
            }
            pg_sys::NodeTag::T_RenameStmt => {
                let rename = statement.cast::<pg_sys::RenameStmt>();
                if (*rename).renameType != pg_sys::ObjectType::OBJECT_DATABASE {
                    return;
                }
                (*rename).subname
            }
            pg_sys::NodeTag::T_AlterDatabaseStmt => {
                let alter = statement.cast::<pg_sys::AlterDatabaseStmt>();
                if option(&*alter, (*alter).options, c"tablespace").is_null() {
                    return;
                }
                (*alter).dbname
            }
            pg_sys::NodeTag::T_CreatedbStmt => {
                databases_changed();
                let create = statement.cast::<pg_sys::CreatedbStmt>();
                option(&*create, (*create).options, c"template")
            }
            pg_sys::NodeTag::T_DropStmt => {
                let drop = statement.cast::<pg_sys::DropStmt>();
                let ours = (*drop).removeType == pg_sys::ObjectType::OBJECT_EXTENSION
                    && names_us((*drop).objects);
                MAY_DROP.store(ours, Ordering::Relaxed);
                if ours && let Some(listeners) = listeners() {
                    (listeners.drop_extension)();
                }
                return;
            }
            pg_sys::NodeTag::T_DropOwnedStmt => {
                MAY_DROP.store(true, Ordering::Relaxed);
                return;
            }
            pg_sys::NodeTag::T_TransactionStmt => {
                let kind = (*statement.cast::<pg_sys::TransactionStmt>()).kind;
                if kind == pg_sys::TransactionStmtKind::TRANS_STMT_COMMIT_PREPARED
                    && let Some(listeners) = listeners()
                {
                    // What was prepared may have created an extension; nothing else tells.
                    (listeners.extension)(true);
                }
                return;
            }
            _ => return,
        };
        if let Some(listeners) = listeners()
            && !name.is_null()
        {
            (listeners.database_command)(CStr::from_ptr(name));
        }
    }
}

/// Whether a list of extension names holds ours.
///
/// # Safety
/// `names` must be the list of objects of a live DROP EXTENSION statement.
unsafe fn names_us(names: *mut pg_sys::List) -> bool {
    // SAFETY: by contract a list of strings.
    unsafe {
        pgrx::PgList::<pg_sys::Node>::from_pg(names)
            .iter_ptr()
            .any(|name| CStr::from_ptr(compat::string_value(name)) == c"audit_db")
    }
}

/// The string value of an option of a statement, null where it has none.
///
/// # Safety
/// `options` must be the list of options of a live statement.
unsafe fn option<T>(_statement: &T, options: *mut pg_sys::List, name: &CStr) -> *const c_char {
    // SAFETY: by contract a list of DefElem.
    unsafe {
        let options = pgrx::PgList::<pg_sys::DefElem>::from_pg(options);
        for element in options.iter_ptr() {
            if CStr::from_ptr((*element).defname) == name && !(*element).arg.is_null() {
                return pg_sys::defGetString(element);
            }
        }
    }
    std::ptr::null()
}

/// From here on changes of objects are noticed. `false`: they are already, by a command around this one or one that failed.
unsafe fn watch_objects() -> bool {
    // SAFETY: hooks are variables of this process's only thread.
    unsafe {
        let ours: unsafe extern "C-unwind" fn(_, _, _, _, _) = object_access;
        if pg_sys::object_access_hook.is_some_and(|hook| std::ptr::fn_addr_eq(hook, ours)) {
            return false;
        }
        PREVIOUS_OBJECT_ACCESS = pg_sys::object_access_hook;
        pg_sys::object_access_hook = Some(object_access);
    }
    true
}

/// Notices that an extension comes or goes, however: by command, CASCADE, DROP OWNED or a script. Which one it is the workers
/// find out themselves.
unsafe extern "C-unwind" fn object_access(
    access: pg_sys::ObjectAccessType::Type,
    class: pg_sys::Oid,
    object: pg_sys::Oid,
    part: c_int,
    argument: *mut c_void,
) {
    // SAFETY: the arguments are passed on as they came; what can raise is guarded.
    unsafe {
        if class == pg_sys::ExtensionRelationId {
            extension_access(access, object);
        }
        if let Some(previous) = PREVIOUS_OBJECT_ACCESS {
            previous(access, class, object, part, argument);
        }
    }
}

#[inline(never)]
unsafe extern "C-unwind" fn extension_access(
    access: pg_sys::ObjectAccessType::Type,
    extension: pg_sys::Oid,
) {
    let created = access == pg_sys::ObjectAccessType::OAT_POST_CREATE;
    let dropped = access == pg_sys::ObjectAccessType::OAT_DROP;
    if let Some(listeners) = listeners()
        && (created || dropped)
    {
        (listeners.extension)(created);
    }
    if dropped && !MAY_DROP.load(Ordering::Relaxed) {
        // SAFETY: guarded; the extension is the one that is being dropped.
        unsafe { refuse_to_be_swept_away(extension) };
    }
}

/// Tables that are made for an exchange lie in their owner's schema and belong to the extension. Who drops such a schema drops
/// what is in it, and the server would take the extension along, whoever owns it.
#[pgrx::pg_guard]
unsafe extern "C-unwind" fn refuse_to_be_swept_away(extension: pg_sys::Oid) {
    if crate::pg::extension::is_ours(extension)
        && let Some(listeners) = listeners()
    {
        (listeners.swept_away)();
    }
}

/// The end of a transaction that created or dropped something.
#[pgrx::pg_guard]
extern "C-unwind" fn tell_transaction_end(committed: bool) {
    if let Some(listeners) = listeners() {
        (listeners.transaction_end)(committed);
    }
}

/// Called with the events of transactions that [`Listeners::transaction_end`] is for.
pub fn transaction_event(event: pg_sys::XactEvent::Type) {
    match event {
        transaction::COMMIT | transaction::PREPARE => tell_transaction_end(true),
        transaction::ABORT => tell_transaction_end(false),
        _ => {}
    }
}
