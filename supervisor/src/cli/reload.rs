//! `reload`: the settings are read again, and what came of it is said.

use holdfast_proto::supervisor as pb;

use super::connection::Connection;
use super::schema::Reloaded;
use super::{FAILED, Outcome, print, render, say};

pub(super) async fn run(connection: Connection, as_json: bool) -> Outcome {
    let told = connection.reload(&pb::ReloadRequest::new()).await?;
    if as_json {
        print(&render::json(&Reloaded::new(&told)))?;
    } else {
        for one in &told.changed {
            print(&format!("{}: {}, was {}\n", one.key, one.to, one.from))?;
        }
        if told.changed.is_empty() {
            print("nothing has changed\n")?;
        }
        for one in &told.refused {
            let pb::ReloadRefused { key, stays, asked, reason, .. } = one;
            say::tell(&format!("{key} stays {stays} and does not become {asked}: {reason}"));
        }
        for sentence in &told.overridden {
            say::tell(sentence);
        }
    }
    Ok(if told.refused.is_empty() { 0 } else { FAILED })
}
