//! `holdfast doctor`: the findings as text or JSON, and the exit code.

use std::time::Duration;

use holdfast_proto::supervisor as pb;
use serde::Serialize;

use super::connection::Connection;
use super::{Outcome, print, render, schema};
use crate::chain;
use crate::doctor::{self, Finding, Level};

/// A supervisor that takes longer is as good as none.
const PATIENCE: Duration = Duration::from_secs(5);

/// What `--json` gives.
#[derive(Debug, Serialize)]
struct Report<'a> {
    /// Whether nothing needs attention.
    healthy: bool,
    findings: &'a [Finding],
    /// The report of holdfastd's last start, if it answers.
    #[serde(flatten)]
    restore: Option<schema::Report<'a>>,
}

/// Examines everything; 1 if anything needs attention.
pub(super) async fn run(connection: Connection, json: bool) -> Outcome {
    let asked = tokio::time::timeout(PATIENCE, async { connection.info(&pb::InfoRequest::new()).await }).await;
    let answer = match asked {
        Ok(answer) => answer.map_err(|e| chain(&e)),
        Err(_) => Err(format!("holdfastd does not answer within {PATIENCE:?}")),
    };
    let restore = answer.as_ref().ok().and_then(|info| info.restore.as_ref().cloned());
    let findings = doctor::examine(&doctor::probe::facts(answer).await);
    let healthy = findings.iter().all(|finding| finding.level == Level::Ok);
    let restore = restore.as_ref().map(schema::Report::new);
    print(&if json { render::json(&Report { healthy, findings: &findings, restore }) } else { text(&findings) })?;
    Ok(u8::from(!healthy))
}

/// What is worst comes last, where the eye is.
fn text(findings: &[Finding]) -> String {
    let mut sorted: Vec<&Finding> = findings.iter().collect();
    sorted.sort_by_key(|finding| finding.level);
    let mut text = String::new();
    for finding in sorted {
        text += &format!("{:<4}  {:<13}  {}\n", finding.level.as_str(), finding.check, finding.message);
        if finding.level != Level::Ok && !finding.advice.is_empty() {
            text += &format!("{:21}→ {}\n", "", finding.advice);
        }
    }
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    match (count(Level::Warn), count(Level::Fail)) {
        (0, 0) => text += "nothing needs attention\n",
        (warnings, failures) => text += &format!("{failures} failed, {warnings} to look after\n"),
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(level: Level, message: &str) -> Finding {
        Finding { check: "shims", level, message: message.into(), advice: "do this".into() }
    }

    #[test]
    fn what_is_worst_comes_last_with_what_to_do() {
        let text = text(&[finding(Level::Fail, "bad"), finding(Level::Ok, "good"), finding(Level::Warn, "so so")]);
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        assert_eq!(
            lines,
            [
                "ok    shims          good",
                "warn  shims          so so",
                "→ do this",
                "fail  shims          bad",
                "→ do this",
                "1 failed, 1 to look after"
            ]
        );
    }

    #[test]
    fn the_schema_is_fixed() {
        let findings = [finding(Level::Warn, "so so")];
        let value = |restore| serde_json::to_value(Report { healthy: false, findings: &findings, restore });
        let mut expected = serde_json::json!({
            "healthy": false,
            "findings": [{ "check": "shims", "level": "warn", "message": "so so", "advice": "do this" }],
        });
        assert_eq!(value(None).expect("it has text for keys"), expected);
        let report = pb::RestoreReport { took_ns: 7, ..Default::default() };
        let given = value(Some(schema::Report::new(&report))).expect("it has text for keys");
        expected["at"] = "".into();
        expected["took_ns"] = 7.into();
        expected["containers"] = serde_json::json!([]);
        assert_eq!(given, expected);
    }
}
