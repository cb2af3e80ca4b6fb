//! Each PCP command as one of pgmend's, and its answer in Pgpool-II's words.

use super::packet::{self, Request, Severity};
use super::{Operator, node_info};
use crate::admin::{Command, CommandError, Reply, StopMode};
use crate::base::NodeId;
use crate::cluster::View;
use crate::workflow::{JobSnapshot, Outcome};

/// The highest number of nodes that Pgpool-II knows; its messages say so.
const MAX_NODES: u16 = 128;

/// Sizes of the clients' fields for a parameter's name, value and description, less their final zero.
const PARAMETER_FIELDS: (usize, usize, usize) = (64 - 1, 512 - 1, 80 - 1);

/// What the session does after a request.
#[derive(Debug)]
pub(super) enum Next {
    /// Goes on with the next request.
    Continue,
    /// Answers when this job has ended.
    AwaitJob(u64),
    /// Sends the answer, then stops the daemon.
    Stop(StopMode),
    /// Sends the answer and closes.
    Close,
}

/// Answers a request of a client that has logged in; the answer is appended to `out`.
pub(super) async fn answer(operator: &dyn Operator, request: Request<'_>, out: &mut Vec<u8>) -> Next {
    match request.kind {
        b'L' => packet::reply(out, b'l', &["CommandComplete", &operator.view().nodes.len().to_string()]),
        b'I' => node_info(&operator.view(), request.body, out),
        b'B' => pool_status(operator, out),
        b'C' => return attach(operator, request.body, out).await,
        b'D' | b'd' => return detach(operator, request.body, out).await,
        b'O' => return recover(operator, request.body, out).await,
        b'J' | b'j' => return promote(operator, request.body, out).await,
        b'Z' => {
            let result = operator.run(Command::Reload).await;
            return done(result, b'z', out);
        }
        b'T' | b't' => return stop(request.body, out),
        b'A' => set_parameter(request.body, out),
        b'X' => return Next::Close,
        kind => return unknown(kind, out),
    }
    Next::Continue
}

/// The answer to a recovery whose job has ended.
pub(super) fn job_ended(job: Option<&JobSnapshot>, out: &mut Vec<u8>) {
    let Some(job) = job else {
        let detail = "the recovery is no longer remembered; see the log and the state of the node";
        return failed(out, "recovery failed", Some(detail));
    };
    let is_recovery = job.kind == crate::recovery::KIND;
    if job.outcome == Outcome::Succeeded {
        return packet::complete(out, if is_recovery { b'c' } else { b'd' });
    }
    let (first, rest) = job.message.trim().split_once('\n').unwrap_or((job.message.trim(), ""));
    let outcome = match job.outcome {
        Outcome::Cancelled => "was cancelled",
        Outcome::Interrupted => "was interrupted by the end of the daemon",
        Outcome::Running | Outcome::Failed | Outcome::Succeeded => "failed",
    };
    let message = if first.is_empty() { format!("{} {outcome}", job.kind) } else { lower_first(first) };
    let detail = if rest.trim().is_empty() { last_lines(&job.output) } else { rest.to_owned() };
    failed(out, &message, Some(&detail));
}

/// The last lines that fit into the detail of an error: the newest are the ones that tell why.
fn last_lines(output: &[String]) -> String {
    let mut room = packet::MAX_ERROR_FIELD;
    let mut taken: Vec<&str> = Vec::new();
    for line in output.iter().rev() {
        match room.checked_sub(line.len() + 1) {
            Some(left) => room = left,
            // The very last line is told even if it must be cut.
            None if taken.is_empty() => return line.clone(),
            None => break,
        }
        taken.push(line);
    }
    taken.reverse();
    taken.join("\n")
}

/// Pgpool-II's messages begin in lower case, so `Could not …` becomes `could not …`; an abbreviation (`WAL …`) stays.
fn lower_first(text: &str) -> String {
    let mut characters = text.chars();
    let Some(first) = characters.next() else { return String::new() };
    let rest = characters.as_str();
    if rest.starts_with(|c: char| c.is_ascii_uppercase()) {
        return text.to_owned();
    }
    first.to_lowercase().chain(rest.chars()).collect()
}

fn failed(out: &mut Vec<u8>, message: &str, detail: Option<&str>) {
    packet::error(out, Severity::Error, message, detail);
}

/// A refusal in the words of the command; it may end the connection.
fn refused(error: &CommandError, out: &mut Vec<u8>) -> Next {
    // The clients do not print the hint's own field, so it follows the detail.
    let detail = match (&error.detail, &error.hint) {
        (Some(detail), Some(hint)) => Some(format!("{detail}\nHINT:  {hint}")),
        (detail, hint) => detail.clone().or_else(|| hint.clone()),
    };
    let severity = if error.fatal { Severity::Fatal } else { Severity::Error };
    packet::error(out, severity, &lower_first(&error.message), detail.as_deref());
    if error.fatal { Next::Close } else { Next::Continue }
}

fn done(result: Result<Reply, CommandError>, kind: u8, out: &mut Vec<u8>) -> Next {
    match result {
        Ok(_) => packet::complete(out, kind),
        Err(error) => return refused(&error, out),
    }
    Next::Continue
}

/// The first string of a body, as text.
fn first_text(body: &[u8]) -> String {
    String::from_utf8_lossy(packet::strings(body).next().unwrap_or_default()).trim().to_owned()
}

/// The node of a body, or the text that was there instead of one. No text is ever taken for node 0, as `atoi` would.
fn node_of(view: &View, body: &[u8]) -> Result<NodeId, String> {
    let text = first_text(body);
    let node = text.parse::<u16>().ok().map(NodeId).filter(|id| view.node(*id).is_some());
    node.ok_or(text)
}

fn node_info(view: &View, body: &[u8], out: &mut Vec<u8>) {
    let chosen = if first_text(body) == "-1" {
        view.nodes.iter().collect()
    } else {
        match node_of(view, body).map(|id| view.node(id)) {
            Ok(node) => node.into_iter().collect::<Vec<_>>(),
            Err(text) => {
                return failed(out, "informing node info failed", Some(&format!("invalid node ID : {text}")));
            }
        }
    };
    packet::reply(out, b'i', &["ArraySize", &chosen.len().to_string()]);
    for node in chosen {
        let fields = node_info::fields(view, node);
        let whole: Vec<&str> = std::iter::once("NodeInfo").chain(fields.iter().map(String::as_str)).collect();
        packet::reply(out, b'i', &whole);
    }
    packet::complete(out, b'i');
}

fn pool_status(operator: &dyn Operator, out: &mut Vec<u8>) {
    let parameters = operator.listed_parameters();
    let (name_size, value_size, description_size) = PARAMETER_FIELDS;
    packet::binary_array_size(out, b'b', parameters.len());
    for (name, value, description) in &parameters {
        let name = packet::cut(name, name_size);
        let (value, description) = (packet::cut(value, value_size), packet::cut(description, description_size));
        packet::reply(out, b'b', &["ProcessConfig", name, value, description]);
    }
    packet::complete(out, b'b');
}

fn out_of_range(request: &str, text: &str, out: &mut Vec<u8>) -> Next {
    let message = format!(
        "invalid {request} request, node id: {text} is out of range. node id must be between [0 and {MAX_NODES}]"
    );
    failed(out, &message, None);
    Next::Continue
}

async fn attach(operator: &dyn Operator, body: &[u8], out: &mut Vec<u8>) -> Next {
    match node_of(&operator.view(), body) {
        Ok(node) => done(operator.run(Command::Attach { node, accept_data: false }).await, b'c', out),
        Err(text) => out_of_range("failback", &text, out),
    }
}

async fn detach(operator: &dyn Operator, body: &[u8], out: &mut Vec<u8>) -> Next {
    match node_of(&operator.view(), body) {
        Ok(node) => done(operator.run(Command::Detach { node }).await, b'd', out),
        Err(text) => out_of_range("degenerate backend", &text, out),
    }
}

async fn recover(operator: &dyn Operator, body: &[u8], out: &mut Vec<u8>) -> Next {
    let node = match node_of(&operator.view(), body) {
        Ok(node) => node,
        Err(text) => {
            failed(out, "process recovery request failed", Some(&format!("node id {text} is not valid")));
            return Next::Continue;
        }
    };
    match operator.run(Command::Recover { node, overwrite: false, accept_loss: false }).await {
        Ok(Reply::Job { job }) => Next::AwaitJob(job.id),
        // Without a job there is nothing that could be waited for, so success cannot be claimed.
        Ok(_) => {
            failed(out, "recovery failed", Some("no job was started"));
            Next::Continue
        }
        Err(error) => refused(&error, out),
    }
}

/// `pcp_promote_node -s`: a planned switchover. Without `-s` Pgpool-II only believes another node to be the primary.
async fn promote(operator: &dyn Operator, body: &[u8], out: &mut Vec<u8>) -> Next {
    let mut texts = packet::strings(body);
    let _node = texts.next();
    let with_switchover = texts.next().is_some_and(|option| option.first() == Some(&b's'));
    let node = match node_of(&operator.view(), body) {
        Ok(node) => node,
        Err(text) => {
            let detail = format!("node id {text} is not valid");
            failed(out, "could not process promote request", Some(&detail));
            return Next::Continue;
        }
    };
    if !with_switchover {
        let detail =
            "without -s the server itself would not be promoted, and pgmend routes to no primary that does not write";
        failed(out, "could not process promote request", Some(&format!("{detail}\nHINT:  use -s (--switchover)")));
        return Next::Continue;
    }
    let transactions = crate::maintenance::LongTransactions::default();
    let work = crate::maintenance::Planned::Switchover { node: Some(node), transactions, strict: false };
    match operator.run(Command::Planned { work, dry_run: false }).await {
        Ok(Reply::Job { job }) => Next::AwaitJob(job.id),
        Ok(_) => {
            failed(out, "switchover failed", Some("no job was started"));
            Next::Continue
        }
        Err(error) => refused(&error, out),
    }
}

/// The answer goes out first: a daemon that has ended answers nobody.
fn stop(body: &[u8], out: &mut Vec<u8>) -> Next {
    let mode = match body.first() {
        Some(b's') => StopMode::Smart,
        Some(b'f') => StopMode::Fast,
        Some(b'i') => StopMode::Immediate,
        other => {
            let letter = other.map(|b| char::from(*b)).filter(|c| *c != '\0').map(String::from).unwrap_or_default();
            let detail = format!("invalid shutdown mode \"{letter}\"");
            failed(out, "PCP: error while processing shutdown request", Some(&detail));
            return Next::Continue;
        }
    };
    packet::complete(out, b't');
    Next::Stop(mode)
}

/// pgmend sends no notices below an error, so there is nothing to set; the value is checked by nobody.
fn set_parameter(body: &[u8], out: &mut Vec<u8>) {
    let name = first_text(body);
    if name.eq_ignore_ascii_case("client_min_messages") {
        return packet::complete(out, b'a');
    }
    failed(out, "PCP: set configuration parameter failed", Some(&format!("invalid parameter \"{name}\"")));
}

fn unknown(kind: u8, out: &mut Vec<u8>) -> Next {
    let what = match kind {
        b'N' => "pcp_proc_count",
        b'P' => "pcp_proc_info",
        b'H' => "pcp_health_check_stats",
        b'W' => "pcp_watchdog_info",
        b'V' => "pcp_log_rotate",
        b'G' => "pcp_invalidate_query_cache",
        _ => {
            let detail = format!("unknown PCP packet type \"{}\"", char::from(kind).escape_default());
            packet::error(out, Severity::Fatal, "PCP processing request", Some(&detail));
            return Next::Close;
        }
    };
    failed(out, &format!("{what} is not supported by pgmend yet"), None);
    Next::Continue
}
