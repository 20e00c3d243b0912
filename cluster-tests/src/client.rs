//! A small blocking S3 client: HTTP/1.1 over `std::net`, SigV4 in headers.
//!
//! [`Client`] makes whole requests. [`Connection`] is for tests that stop in the middle of one: it writes what it is
//! told and reads one response.

use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use ring::{digest, hmac};
use time::OffsetDateTime;

/// No answer takes longer than this in a healthy test.
const TIMEOUT: Duration = Duration::from_secs(60);
/// For how long a node may refuse by 503 what it is asked again and again, while others come and go.
const REFUSED_MAX: Duration = Duration::from_secs(120);
/// Pause of a client that was refused.
const REFUSED_PAUSE: Duration = Duration::from_millis(100);

const PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'/');
const QUERY: &AsciiSet = &PATH.add(b'/');

/// Encodes a key for a path.
pub fn encode_path(key: &str) -> String {
    utf8_percent_encode(key, PATH).to_string()
}

/// Encodes a value for a query.
pub fn encode_query(value: &str) -> String {
    utf8_percent_encode(value, QUERY).to_string()
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Response {
    /// HTTP status.
    pub status: u16,
    /// Names in lower case, in order.
    pub headers: Vec<(String, String)>,
    /// The whole body.
    pub body: Vec<u8>,
}

impl Response {
    /// The first header called `name` (lower case).
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(have, _)| have == name).map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The text of the first XML element `name`.
    pub fn element(&self, name: &str) -> Option<String> {
        elements(&self.text(), name).into_iter().next()
    }

    /// S3's error code, or nothing.
    pub fn code(&self) -> String {
        self.element("Code").unwrap_or_default()
    }
}

/// The texts of all XML elements `name`.
pub fn elements(xml: &str, name: &str) -> Vec<String> {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    xml.split(&open).skip(1).filter_map(|rest| Some(rest.split_once(&close)?.0.to_owned())).collect()
}

/// What a request's signature says about its body.
#[derive(Clone, Copy, Debug)]
pub enum Payload<'a> {
    /// SHA-256 of these bytes.
    Hash(&'a [u8]),
    /// This text as it is, such as `UNSIGNED-PAYLOAD`.
    Literal(&'a str),
}

/// A server and a key pair.
#[derive(Clone, Debug)]
pub struct Client {
    /// Where the server listens.
    pub addr: SocketAddr,
    /// The access key.
    pub access_key: String,
    /// Its secret.
    pub secret_key: String,
}

/// A request to be made.
#[derive(Clone, Debug, Default)]
pub struct Request<'a> {
    /// `GET`, `PUT`, …
    pub method: &'a str,
    /// With its leading slash; encoded here.
    pub path: &'a str,
    /// Name and value; encoded and sorted here.
    pub query: &'a [(&'a str, &'a str)],
    /// Additional headers; those that begin with `x-amz-` are signed.
    pub headers: &'a [(&'a str, &'a str)],
    /// The body.
    pub body: &'a [u8],
}

impl Client {
    /// Opens a connection.
    pub fn connect(&self) -> io::Result<Connection> {
        Connection::open(self.addr)
    }

    /// One signed request on a connection of its own.
    pub fn send(&self, request: &Request<'_>) -> io::Result<Response> {
        self.send_on(&mut self.connect()?, request)
    }

    /// One signed request on `connection`.
    pub fn send_on(&self, connection: &mut Connection, request: &Request<'_>) -> io::Result<Response> {
        self.send_on_at(connection, request, OffsetDateTime::now_utc())
    }

    /// The same, signed by a clock that says `now`.
    pub fn send_on_at(
        &self,
        connection: &mut Connection,
        request: &Request<'_>,
        now: OffsetDateTime,
    ) -> io::Result<Response> {
        let length = request.body.len().to_string();
        let mut headers = request.headers.to_vec();
        if !request.body.is_empty() || matches!(request.method, "PUT" | "POST") {
            headers.push(("content-length", &length));
        }
        let request = Request { headers: &headers, ..request.clone() };
        let head = self.head(&request, Payload::Hash(request.body), now);
        connection.write(head.as_bytes())?;
        // A server that refuses early answers before it has read the body, and may close then: the answer counts.
        let sent = connection.write(request.body);
        connection.read_response(request.method).map_err(|error| sent.err().unwrap_or(error))
    }

    /// The answer to a request that is made again while it is 503 or its connection breaks, as every client does it: it
    /// may be repeated, as putting the same bytes. A cluster may answer so while one of its nodes is lost, refused or
    /// comes back, and on a busy machine any node may lose its session at any time; but not for ever.
    ///
    /// # Panics
    /// When nothing else is answered in two minutes, or nothing at all.
    pub fn send_until_served(&self, request: &Request<'_>) -> Response {
        let (method, path, begin) = (request.method, request.path, Instant::now());
        loop {
            let refusal = match self.send(request) {
                Ok(response) if response.status != 503 => return response,
                Ok(response) => format!("503 {}", response.text()),
                Err(error) if is_broken(&error) => error.to_string(),
                Err(error) => panic!("{method} {path}: {error}"),
            };
            assert!(begin.elapsed() < REFUSED_MAX, "{method} {path} is refused for {REFUSED_MAX:?}: {refusal}");
            println!("{method} {path}: {refusal}");
            std::thread::sleep(REFUSED_PAUSE);
        }
    }

    /// GET of a key by [`Client::send_until_served`].
    pub fn get_until_served(&self, bucket: &str, key: &str) -> Response {
        self.send_until_served(&Request { method: "GET", path: &format!("/{bucket}/{key}"), ..Request::default() })
    }

    /// PUT of a key by [`Client::send_until_served`].
    pub fn put_until_served(&self, bucket: &str, key: &str, body: &[u8]) -> Response {
        let path = format!("/{bucket}/{key}");
        self.send_until_served(&Request { method: "PUT", path: &path, body, ..Request::default() })
    }

    /// DELETE of a key by [`Client::send_until_served`].
    pub fn delete_until_served(&self, bucket: &str, key: &str) -> Response {
        let path = format!("/{bucket}/{key}");
        self.send_until_served(&Request { method: "DELETE", path: &path, ..Request::default() })
    }

    /// GET of a key.
    pub fn get(&self, bucket: &str, key: &str) -> io::Result<Response> {
        self.send(&Request { method: "GET", path: &format!("/{bucket}/{key}"), ..Request::default() })
    }

    /// PUT of a key.
    pub fn put(&self, bucket: &str, key: &str, body: &[u8]) -> io::Result<Response> {
        self.send(&Request { method: "PUT", path: &format!("/{bucket}/{key}"), body, ..Request::default() })
    }

    /// DELETE of a key.
    pub fn delete(&self, bucket: &str, key: &str) -> io::Result<Response> {
        self.send(&Request { method: "DELETE", path: &format!("/{bucket}/{key}"), ..Request::default() })
    }

    /// Creates a bucket.
    ///
    /// # Panics
    /// When the server does not answer 200, or 503 for too long.
    pub fn create_bucket(&self, bucket: &str) {
        let path = format!("/{bucket}");
        let request = Request { method: "PUT", path: &path, ..Request::default() };
        let first = self.send(&request);
        let is_refused = first.as_ref().map_or_else(is_broken, |response| response.status == 503);
        let response = if is_refused { self.send_until_served(&request) } else { first.unwrap() };
        // What was refused may have been done all the same.
        if is_refused && response.code() == "BucketAlreadyOwnedByYou" {
            return;
        }
        assert_eq!(response.status, 200, "create bucket: {}", response.text());
    }

    /// All keys below `prefix`, page by page.
    pub fn list(&self, bucket: &str, prefix: &str) -> io::Result<Vec<String>> {
        self.list_by(bucket, prefix, |request| self.send(request))
    }

    /// The same, each page by [`Client::send_until_served`].
    ///
    /// # Panics
    /// As that, and when anything else than a listing is answered.
    pub fn list_until_served(&self, bucket: &str, prefix: &str) -> Vec<String> {
        self.list_by(bucket, prefix, |request| Ok(self.send_until_served(request))).unwrap()
    }

    fn list_by(
        &self,
        bucket: &str,
        prefix: &str,
        ask: impl Fn(&Request<'_>) -> io::Result<Response>,
    ) -> io::Result<Vec<String>> {
        let mut keys = Vec::new();
        let mut token: Option<String> = None;
        loop {
            let mut query = vec![("list-type", "2"), ("prefix", prefix)];
            if let Some(token) = &token {
                query.push(("continuation-token", token));
            }
            let path = format!("/{bucket}");
            let page = ask(&Request { method: "GET", path: &path, query: &query, ..Request::default() })?;
            if page.status != 200 {
                return Err(io::Error::other(format!("list: {} {}", page.status, page.text())));
            }
            keys.extend(elements(&page.text(), "Key"));
            token = page.element("NextContinuationToken");
            if token.is_none() {
                return Ok(keys);
            }
        }
    }

    /// The head of a signed request, ready for the socket. The body is the caller's.
    pub fn head(&self, request: &Request<'_>, payload: Payload<'_>, now: OffsetDateTime) -> String {
        let path = encode_path(request.path);
        let mut query: Vec<String> = request
            .query
            .iter()
            .map(|(name, value)| format!("{}={}", encode_query(name), encode_query(value)))
            .collect();
        query.sort();
        let query = query.join("&");
        let host = self.addr.to_string();
        let hash = match payload {
            Payload::Hash(bytes) => sha256_hex(bytes),
            Payload::Literal(text) => text.to_owned(),
        };
        let date = format!(
            "{:04}{:02}{:02}T{:02}{:02}{:02}Z",
            now.year(),
            u8::from(now.month()),
            now.day(),
            now.hour(),
            now.minute(),
            now.second()
        );
        let mut signed: Vec<(&str, &str)> =
            vec![("host", &host), ("x-amz-content-sha256", &hash), ("x-amz-date", &date)];
        signed.extend(request.headers.iter().copied().filter(|(name, _)| name.starts_with("x-amz-")));
        signed.sort_unstable();
        let names: Vec<&str> = signed.iter().map(|(name, _)| *name).collect();
        let names = names.join(";");

        let mut canonical = format!("{}\n{path}\n{query}\n", request.method);
        for (name, value) in &signed {
            let _ = writeln!(canonical, "{name}:{}", value.trim());
        }
        let _ = write!(canonical, "\n{names}\n{hash}");
        let scope = format!("{}/us-east-1/s3/aws4_request", &date[..8]);
        let to_sign = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{}", sha256_hex(canonical.as_bytes()));
        let mut key = hmac::Key::new(hmac::HMAC_SHA256, format!("AWS4{}", self.secret_key).as_bytes());
        for part in scope.split('/') {
            let tag = hmac::sign(&key, part.as_bytes());
            key = hmac::Key::new(hmac::HMAC_SHA256, tag.as_ref());
        }
        let signature = hex::encode(hmac::sign(&key, to_sign.as_bytes()));

        let mark = if query.is_empty() { "" } else { "?" };
        let mut head = format!("{} {path}{mark}{query} HTTP/1.1\r\n", request.method);
        for (name, value) in &signed {
            let _ = write!(head, "{name}: {value}\r\n");
        }
        for (name, value) in request.headers.iter().filter(|(name, _)| !name.starts_with("x-amz-")) {
            let _ = write!(head, "{name}: {value}\r\n");
        }
        let _ = write!(
            head,
            "authorization: AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={names}, Signature={signature}\r\n\r\n",
            self.access_key
        );
        head
    }
}

/// Whether the other end closed the connection, and did not just say nothing.
pub fn is_broken(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
}

fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(digest::digest(&digest::SHA256, bytes))
}

/// A socket that speaks as much HTTP as it is told to.
#[derive(Debug)]
pub struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    /// Connects.
    pub fn open(addr: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&addr, TIMEOUT)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        Ok(Self { stream: BufReader::with_capacity(256 << 10, stream) })
    }

    /// Writes bytes as they are.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// Ends the writing side; the server sees the end of the stream.
    pub fn finish_writing(&mut self) -> io::Result<()> {
        self.stream.get_ref().shutdown(std::net::Shutdown::Write)
    }

    /// The socket itself.
    pub fn stream(&self) -> &TcpStream {
        self.stream.get_ref()
    }

    /// Reads at most `buffer.len()` bytes of whatever comes.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.read(buffer)
    }

    /// Reads one response to its end, passing over `100 Continue`.
    pub fn read_response(&mut self, method: &str) -> io::Result<Response> {
        loop {
            let (status, headers) = self.read_head()?;
            if status == 100 {
                continue;
            }
            let find = |name: &str| headers.iter().find(|(have, _)| have == name).map(|(_, value)| value.as_str());
            let mut body = Vec::new();
            if method == "HEAD" || status == 204 || status == 304 {
            } else if find("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
                self.read_chunked(&mut body)?;
            } else if let Some(length) = find("content-length") {
                let length: u64 = length.parse().map_err(|_| io::Error::other("bad content-length"))?;
                let got = self.stream.by_ref().take(length).read_to_end(&mut body)?;
                if got as u64 != length {
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the body is short"));
                }
            } else {
                self.stream.read_to_end(&mut body)?;
            }
            return Ok(Response { status, headers, body });
        }
    }

    /// Reads the head of a response alone.
    pub fn read_head(&mut self) -> io::Result<(u16, Vec<(String, String)>)> {
        let status = self.read_line()?;
        let status = status
            .split(' ')
            .nth(1)
            .and_then(|code| code.parse().ok())
            .ok_or_else(|| io::Error::other(format!("no status in `{status}`")))?;
        let mut headers = Vec::new();
        loop {
            let line = self.read_line()?;
            if line.is_empty() {
                return Ok((status, headers));
            }
            let (name, value) = line.split_once(':').ok_or_else(|| io::Error::other("a header without colon"))?;
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }

    fn read_line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        self.stream.by_ref().take(64 << 10).read_until(b'\n', &mut line)?;
        if line.pop() != Some(b'\n') {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection was closed"));
        }
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        String::from_utf8(line).map_err(io::Error::other)
    }

    fn read_chunked(&mut self, body: &mut Vec<u8>) -> io::Result<()> {
        loop {
            let line = self.read_line()?;
            let size = line.split(';').next().unwrap_or_default().trim();
            let size = u64::from_str_radix(size, 16).map_err(|_| io::Error::other("a bad chunk size"))?;
            if size == 0 {
                while !self.read_line()?.is_empty() {}
                return Ok(());
            }
            let got = self.stream.by_ref().take(size).read_to_end(body)?;
            if got as u64 != size {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "a short chunk"));
            }
            self.read_line()?;
        }
    }
}
