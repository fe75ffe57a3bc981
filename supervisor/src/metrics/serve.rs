//! The metrics over HTTP, for Prometheus: collected in the background at a pace of their own, so that a scrape is answered
//! from memory and no shim that hangs can delay one.

use std::convert::Infallible;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;
use std::{fs, io};

use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Measured;
use crate::api::{Api, LEAVING};
use crate::client::has_listener;
use crate::config::MetricsListen;

/// What the text is, as the format's specification names it.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// How long a client may take for its one request.
const PATIENCE: Duration = Duration::from_secs(10);

/// How many clients are served at a time; the next ones wait.
const CLIENTS: usize = 16;

/// The last text, `None` until the first is there.
type Latest = watch::Receiver<Option<Rc<str>>>;

/// Collects every `interval` and serves what was collected last, until it is dropped. An address that cannot be had is
/// tried again in every interval: containers matter more than their figures, so that it keeps holdfastd from nothing.
pub async fn serve(api: Api, listen: MetricsListen, interval: Duration) {
    let (text, latest) = watch::channel(None);
    tokio::join!(collect(api, interval, text), accept(listen, interval, latest));
}

async fn collect(api: Api, interval: Duration, text: watch::Sender<Option<Rc<str>>>) {
    loop {
        match Measured::collect(&api).await.map(|measured| measured.text()) {
            Ok(Ok(collected)) => {
                text.send_replace(Some(collected.into()));
            }
            Ok(Err(e)) => tracing::error!("cannot write the metrics: {e}"),
            Err(refusal) => tracing::warn!("cannot collect the metrics: {refusal}"),
        }
        tokio::time::sleep(interval).await;
    }
}

async fn accept(listen: MetricsListen, interval: Duration, latest: Latest) {
    let listener = loop {
        match Listener::bind(&listen).await {
            Ok(listener) => break listener,
            Err(e) => tracing::error!("cannot serve metrics on {listen}, trying again in {interval:?}: {e}"),
        }
        tokio::time::sleep(interval).await;
    };
    tracing::info!("metrics are served on {listen}");
    let mut clients = JoinSet::new();
    loop {
        while clients.len() >= CLIENTS {
            clients.join_next().await;
        }
        while clients.try_join_next().is_some() {}
        let latest = latest.clone();
        match &listener {
            Listener::Unix(socket) => match socket.0.accept().await {
                Ok((stream, _)) => drop(clients.spawn_local(answer(stream, latest))),
                Err(e) => rest(&e).await,
            },
            Listener::Tcp(socket) => match socket.accept().await {
                Ok((stream, _)) => drop(clients.spawn_local(answer(stream, latest))),
                Err(e) => rest(&e).await,
            },
        }
    }
}

/// Out of descriptors, most likely: leave the backlog a moment rather than spin.
async fn rest(error: &io::Error) {
    tracing::warn!("cannot accept a connection for metrics: {error}");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

enum Listener {
    Unix(Socket),
    Tcp(TcpListener),
}

/// A bound socket, whose file goes with it.
struct Socket(UnixListener);

impl Drop for Socket {
    fn drop(&mut self) {
        if let Some(path) = self.0.local_addr().ok().as_ref().and_then(|a| a.as_pathname()) {
            let _ = fs::remove_file(path); // what is left is replaced by the next one
        }
    }
}

impl Listener {
    async fn bind(listen: &MetricsListen) -> io::Result<Self> {
        match listen {
            MetricsListen::Loopback(address) => TcpListener::bind(address).await.map(Self::Tcp),
            MetricsListen::Unix(path) => {
                make_room(path).await?;
                let socket = Socket(UnixListener::bind(path)?);
                // For the group too, which is the directory's where that says so (/run/holdfast-metrics does): whoever
                // scrapes needs to be neither root nor somebody who reaches the API.
                fs::set_permissions(path, fs::Permissions::from_mode(0o660))?;
                Ok(Self::Unix(socket))
            }
        }
    }
}

/// Removes the socket of a dead process; nothing else that is in the way.
async fn make_room(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(io::Error::other("there is a file that is no socket"));
        }
        Ok(_) => {}
    }
    match has_listener(path).await? {
        false => fs::remove_file(path),
        true => Err(io::Error::from(io::ErrorKind::AddrInUse)),
    }
}

async fn answer(stream: impl AsyncRead + AsyncWrite + Unpin + 'static, latest: Latest) {
    let service = hyper::service::service_fn(move |request| respond(request, latest.clone()));
    // One request, one connection: a client that lingers takes nobody's place.
    let served =
        hyper::server::conn::http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(PATIENCE, served).await {
        Ok(Ok(())) => {}
        Ok(Err(e)) => tracing::debug!("a client for metrics went wrong: {e}"),
        Err(_) => tracing::debug!("a client for metrics took more than {PATIENCE:?}"),
    }
}

async fn respond<B>(request: Request<B>, mut latest: Latest) -> Result<Response<String>, Infallible> {
    let plain = |status, text: &str| {
        let mut response = Response::new(format!("{text}\n"));
        *response.status_mut() = status;
        response
    };
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return Ok(response);
    }
    if request.uri().path() != "/metrics" {
        return Ok(plain(StatusCode::NOT_FOUND, "the metrics are at /metrics"));
    }
    // Only right after the start is there anything to wait for.
    let text = match latest.wait_for(Option::is_some).await {
        Ok(text) => text.as_deref().unwrap_or_default().to_owned(),
        Err(_) => return Ok(plain(StatusCode::SERVICE_UNAVAILABLE, LEAVING)),
    };
    let mut response = Response::new(text);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(OPEN_METRICS));
    Ok(response)
}
