//! Replies for people: lines and aligned tables.

use crate::admin::Reply;
use crate::cluster::View;
use crate::maintenance::{Plan, Verdict};
use crate::workflow::{JobSnapshot, Outcome};
use std::fmt::Write;

/// A reply as text that ends with a line break. `now_s` is in Unix seconds.
pub fn reply(reply: &Reply, nodes_only: bool, now_s: u64) -> String {
    match reply {
        Reply::Done { message } => format!("{message}\n"),
        Reply::Status { view, .. } if nodes_only => nodes(view),
        Reply::Status { view, gate, holdups, version, pid, clients, moved: _, pending_restart, verdict } => {
            let mut text = verdict.as_ref().map(one_verdict).unwrap_or_default();
            push(&mut text, format_args!("pgmend {version}, pid {pid}, {clients} clients, gate {gate}\n"));
            let role = if view.mode.replicates() { "main node" } else { "primary" };
            for who in holdups {
                push(&mut text, format_args!("the gate waits for {who}\n"));
            }
            match view.primary {
                Some(primary) => push(&mut text, format_args!("{role}: node {primary}\n")),
                None => push(&mut text, format_args!("{role}: none\n")),
            }
            if !pending_restart.is_empty() {
                push(&mut text, format_args!("waiting for a restart: {}\n", pending_restart.join(", ")));
            }
            text + &nodes(view)
        }
        Reply::Plan { plan } => one_plan(plan),
        Reply::Job { job } => one_job(job, now_s),
        Reply::Jobs { jobs } => all_jobs(jobs, now_s),
    }
}

/// Writing to a `String` cannot fail.
fn push(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    let _ = text.write_fmt(arguments);
}

fn nodes(view: &View) -> String {
    let head = ["node", "host", "port", "status", "role", "weight", "delay", "replication", "reason"];
    let rows = view.nodes.iter().map(|node| {
        let delay = node.delay_bytes.map_or_else(String::new, bytes);
        let replication = [node.replication_state.as_deref(), node.sync_state.as_deref()];
        vec![
            node.spec.id.to_string(),
            node.spec.host.0.clone(),
            node.spec.port.to_string(),
            word(&node.status),
            word(&node.role),
            node.spec.weight.to_string(),
            delay,
            replication.into_iter().flatten().collect::<Vec<_>>().join(" "),
            node.reason.clone(),
        ]
    });
    table(&head, rows.collect())
}

fn all_jobs(jobs: &[JobSnapshot], now_s: u64) -> String {
    if jobs.is_empty() {
        return "no jobs\n".to_owned();
    }
    let head = ["job", "kind", "node", "outcome", "stage", "seconds", "message"];
    let rows = jobs.iter().map(|job| {
        vec![
            job.id.to_string(),
            job.kind.clone(),
            job.node.to_string(),
            outcome(job.outcome).to_owned(),
            job.stage.clone(),
            seconds(job, now_s).to_string(),
            job.message.lines().next().unwrap_or_default().to_owned(),
        ]
    });
    table(&head, rows.collect())
}

fn one_verdict(verdict: &Verdict) -> String {
    let mut text = format!("{}\n", verdict.word);
    for reason in &verdict.reasons {
        push(&mut text, format_args!("  because {reason}\n"));
    }
    for remark in &verdict.remarks {
        push(&mut text, format_args!("  note: {remark}\n"));
    }
    let rows = verdict
        .nodes
        .iter()
        .map(|n| vec![n.node.to_string(), n.role.clone(), n.host.clone(), n.process.clone(), n.disk.clone()]);
    text.push_str(&table(&["node", "role", "host", "process", "disk"], rows.collect()));
    text
}

fn one_plan(plan: &Plan) -> String {
    let mut text = format!("{}\n", plan.title);
    let head = ["step", "what it does", "taken back by", "takes", "clients"];
    let rows = plan.steps.iter().map(|step| {
        let clients = if step.clients_wait { "wait" } else { "work" };
        vec![step.name.clone(), step.what.clone(), step.undo.clone(), step.takes.clone(), clients.to_owned()]
    });
    text.push_str(&table(&head, rows.collect()));
    for remark in &plan.judgement.remarks {
        push(&mut text, format_args!("remark: {remark}\n"));
    }
    if plan.judgement.against.is_empty() {
        text.push_str("nothing stands against it\n");
    }
    for reason in &plan.judgement.against {
        push(&mut text, format_args!("against it: {reason}\n"));
    }
    text
}

fn one_job(job: &JobSnapshot, now_s: u64) -> String {
    let outcome = outcome(job.outcome);
    let mut text = format!("job {}: {} of node {}: {outcome}, {} s\n", job.id, job.kind, job.node, seconds(job, now_s));
    push(&mut text, format_args!("stage: {}\n", stage(job)));
    if !job.message.is_empty() {
        push(&mut text, format_args!("{}\n", job.message));
    }
    for line in &job.output {
        push(&mut text, format_args!("| {line}\n"));
    }
    text
}

/// Stage, progress and note on one line.
pub fn stage(job: &JobSnapshot) -> String {
    let mut text = job.stage.clone();
    match (job.progress.done_bytes, job.progress.total_bytes) {
        (0, None) => {}
        (done, None) => push(&mut text, format_args!(" {}", bytes(done))),
        (done, Some(total)) => {
            let percent = done.saturating_mul(100).checked_div(total).unwrap_or(100).min(100);
            push(&mut text, format_args!(" {} of {} ({percent}%)", bytes(done), bytes(total)));
        }
    }
    if !job.progress.note.is_empty() {
        push(&mut text, format_args!(" {}", job.progress.note));
    }
    text
}

fn seconds(job: &JobSnapshot, now_s: u64) -> u64 {
    job.ended_at_s.unwrap_or(now_s).saturating_sub(job.started_at_s)
}

/// The word for an outcome.
pub fn outcome(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Running => "running",
        Outcome::Succeeded => "succeeded",
        Outcome::Failed => "failed",
        Outcome::Cancelled => "cancelled",
        Outcome::Interrupted => "interrupted",
    }
}

fn bytes(count: u64) -> String {
    const STEPS: [(&str, u64); 4] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    for (unit, size) in STEPS {
        if count >= size {
            let tenths = count.checked_div(size / 10).unwrap_or(count);
            return format!("{}.{} {unit}", tenths / 10, tenths % 10);
        }
    }
    format!("{count} B")
}

/// The word under which an enum goes in JSON.
fn word(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        Ok(_) | Err(_) => "?".to_owned(),
    }
}

fn table(head: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut widths: Vec<usize> = head.iter().map(|cell| cell.chars().count()).collect();
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut one = String::new();
        for (width, cell) in widths.iter().zip(cells) {
            push(&mut one, format_args!("{cell:<width$}  "));
        }
        text.push_str(one.trim_end());
        text.push('\n');
    };
    line(&mut head.iter().copied());
    for row in &rows {
        line(&mut row.iter().map(String::as_str));
    }
    text
}

/// A success needs no proof: a server that starts writes FATAL lines that alarm for nothing. `job show` has them.
pub fn worth_showing(mut job: JobSnapshot) -> JobSnapshot {
    if job.outcome == Outcome::Succeeded && !job.output.is_empty() {
        job.output = vec![format!("`pgmend job show {}` has the words of the programs that ran", job.id)];
    }
    job
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::NodeId;
    use crate::workflow::Progress;

    #[test]
    fn a_job_for_people() {
        let job = JobSnapshot {
            id: 7,
            kind: "recovery".into(),
            node: NodeId(1),
            stage: "FirstStage".into(),
            progress: Progress { done_bytes: 3 << 20, total_bytes: Some(12 << 20), note: "copying".into() },
            outcome: Outcome::Running,
            message: String::new(),
            output: vec!["last words".into()],
            started_at_s: 100,
            ended_at_s: None,
        };
        let text = reply(&Reply::Job { job: job.clone() }, false, 130);
        assert_eq!(
            text,
            "job 7: recovery of node 1: running, 30 s\nstage: FirstStage 3.0 MiB of 12.0 MiB (25%) copying\n| last words\n"
        );
        let failed = JobSnapshot { outcome: Outcome::Failed, ..job.clone() };
        assert_eq!(worth_showing(failed.clone()), failed);
        let succeeded = worth_showing(JobSnapshot { outcome: Outcome::Succeeded, ..job.clone() });
        assert_eq!(succeeded.output, ["`pgmend job show 7` has the words of the programs that ran"]);
        let text = reply(&Reply::Jobs { jobs: vec![job] }, false, 130);
        assert_eq!(
            text,
            "job  kind      node  outcome  stage       seconds  message\n7    recovery  1     running  FirstStage  30\n"
        );
    }
}
