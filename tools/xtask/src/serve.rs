//! A folder over HTTP, for a browser on this machine: enough of it for the page.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Component, Path, PathBuf};
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, Result};

/// Serves `folder` on this machine's own address; port 0 takes a free one.
///
/// # Errors
/// Where the port is taken.
pub fn serve(folder: &Path, port: u16) -> Result<(SocketAddr, JoinHandle<()>)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    let listener = listener.with_context(|| format!("cannot listen on port {port}"))?;
    let address = listener.local_addr()?;
    let folder = folder.to_owned();
    let server = thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let folder = folder.clone();
            // A browser that hangs up has what it wants.
            thread::spawn(move || answer(stream, &folder).ok());
        }
    });
    Ok((address, server))
}

fn answer(mut stream: TcpStream, folder: &Path) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut header = String::new();
    // The headers end with an empty line.
    while reader.read_line(&mut header)? > 2 {
        header.clear();
    }
    let path = request.split(' ').nth(1).unwrap_or("/");
    let found = file(folder, path).and_then(|file| Some((fs::read(&file).ok()?, kind(&file))));
    let (status, (body, kind)) = match found {
        Some(found) => ("200 OK", found),
        None => ("404 Not Found", (b"not found".to_vec(), "text/plain")),
    };
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
    )?;
    stream.write_all(&body)
}

/// The file of a request's path, which must not lead out of the folder.
fn file(folder: &Path, path: &str) -> Option<PathBuf> {
    let path = path.split('?').next()?.trim_start_matches('/');
    let path = Path::new(if path.is_empty() { "index.html" } else { path });
    let inside = path.components().all(|c| matches!(c, Component::Normal(_)));
    inside.then(|| folder.join(path))
}

fn kind(file: &Path) -> &'static str {
    match file.extension().and_then(|e| e.to_str()) {
        Some("html") => "text/html; charset=utf-8",
        Some("css") => "text/css",
        Some("js") => "text/javascript",
        Some("json") => "application/json",
        Some("wasm") => "application/wasm",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_stay_within_the_folder() {
        let of = |path| file(Path::new("page"), path);
        assert_eq!(of("/"), Some("page/index.html".into()));
        assert_eq!(of("/model/a.json?x"), Some("page/model/a.json".into()));
        assert_eq!(of("/../secret"), None);
        assert_eq!(of("//etc/passwd"), Some("page/etc/passwd".into()));
    }
}
