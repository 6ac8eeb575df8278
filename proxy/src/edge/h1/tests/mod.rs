//! Heads and bodies as bytes; what is random prints its seed.

mod bench;
mod chunked;
mod convert;
mod fuzz;
mod request;
mod response;

use super::{
    HeadError,
    edits::{RequestEdits, ResponseEdits},
    request::parse_request,
    response::parse_response,
    slots,
};

/// A browser's request.
const BROWSER: &str = "GET /shop/items?page=2 HTTP/1.1\r\nHost: shop.example.com\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\n\
    Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n\
    Accept-Language: en-US,en;q=0.5\r\nAccept-Encoding: gzip, deflate, br\r\n\
    Referer: https://shop.example.com/\r\nConnection: keep-alive\r\n\
    Cookie: session=0123456789abcdef; theme=dark\r\nUpgrade-Insecure-Requests: 1\r\n\
    Sec-Fetch-Mode: navigate\r\n\r\n";

/// What a web server answers.
const ANSWER: &str = "HTTP/1.1 200 OK\r\nServer: nginx/1.22.1\r\nDate: Mon, 23 Nov 2026 20:15:51 GMT\r\n\
    Content-Type: text/html; charset=utf-8\r\nContent-Length: 1024\r\nConnection: keep-alive\r\n\
    ETag: \"65f0-400\"\r\nCache-Control: max-age=60\r\n\r\n";

/// The head an endpoint gets for a request, or the status and reason of its refusal.
fn sent_with(request: &[u8], edits: &RequestEdits<'_>) -> Result<String, HeadError> {
    let mut slots = slots();
    let head = parse_request(request, &mut slots)?.expect("the head is whole");
    let mut out = Vec::new();
    head.write_upstream(&mut out, edits);
    Ok(String::from_utf8_lossy(&out).into_owned())
}

fn sent(request: &str) -> Result<String, HeadError> {
    sent_with(request.as_bytes(), &RequestEdits::default())
}

/// The same of a response, by default to GET.
fn answered_with(response: &[u8], edits: &ResponseEdits<'_>) -> Result<String, HeadError> {
    let mut slots = slots();
    let head = parse_response(response, &mut slots, false)?.expect("the head is whole");
    let mut out = Vec::new();
    head.write_downstream(&mut out, edits);
    Ok(String::from_utf8_lossy(&out).into_owned())
}
