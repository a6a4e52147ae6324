//! What an object store answers, sorted by what is to be done about it, and calling again.
//!
//! The client below is told not to retry: whether an earlier attempt of a call may have had an effect must be known
//! here, or a conditional put that succeeded and lost its answer would find itself in its own way.

use std::error::Error as _;
use std::fmt::Write as _;
use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};

use object_store::client::{HttpError, HttpErrorKind};

/// How often and how long a call is repeated.
#[derive(Clone, Copy, Debug)]
pub(super) struct RetryPolicy {
    /// The shortest pause between two attempts.
    pub(super) pause_min: Duration,
    /// The longest.
    pub(super) pause_max: Duration,
    /// No attempt begins later than this after the first one.
    pub(super) give_up_after: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            pause_min: Duration::from_millis(50),
            pause_max: Duration::from_secs(3),
            give_up_after: Duration::from_secs(30),
        }
    }
}

/// What an answer means for the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// There is no such object (or upload).
    NotFound,
    /// There is no such bucket.
    NoBucket,
    /// A condition does not hold: something is there, or something else.
    Condition,
    /// The server never saw the request.
    NotSent,
    /// The server may have carried it out, and another attempt may go better.
    InDoubt,
    /// We may not.
    Forbidden,
    /// It was refused, and would be again.
    Refused,
}

/// A call that failed for good.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) answer: Answer,
    /// Whether this attempt or an earlier one may have had an effect.
    pub(super) in_doubt: bool,
    attempts: u32,
    passed: Duration,
    why: String,
    kind: ErrorKind,
}

impl Failure {
    /// The store's own threads have failed: nobody knows what was done.
    pub(super) fn of_lane(error: io::Error) -> Self {
        let (why, kind) = (error.to_string(), error.kind());
        let passed = Duration::ZERO;
        Self { answer: Answer::InDoubt, in_doubt: true, attempts: 1, passed, why, kind }
    }

    /// What the store said, how often it was asked, and what the operator can look at.
    pub(super) fn into_io(self, remedy: &str) -> io::Error {
        let mut text = self.why;
        if self.attempts > 1 {
            let _ = write!(text, " ({} attempts in {:.1?})", self.attempts, self.passed);
        }
        let hint = match self.answer {
            Answer::NoBucket => "make the bucket, or name another one",
            Answer::Forbidden => {
                "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, and what they may do with the bucket"
            }
            Answer::NotSent | Answer::InDoubt => {
                "check AWS_ENDPOINT_URL, and whether the server is well"
            }
            Answer::NotFound | Answer::Condition | Answer::Refused => "",
        };
        let _ = write!(text, "; {remedy}");
        if !hint.is_empty() {
            let _ = write!(text, ": {hint}");
        }
        io::Error::new(self.kind, text)
    }
}

/// Calls until it succeeds, is refused, or the time is over.
pub(super) async fn retried<T, F>(
    policy: RetryPolicy,
    mut call: impl FnMut() -> F,
) -> Result<T, Failure>
where
    F: Future<Output = object_store::Result<T>>,
{
    let start = Instant::now();
    let (mut attempts, mut in_doubt, mut pause) = (0, false, policy.pause_min);
    loop {
        attempts += 1;
        let error = match call().await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        let answer = classify(&error);
        in_doubt |= answer == Answer::InDoubt;
        let passed = start.elapsed();
        let again = matches!(answer, Answer::NotSent | Answer::InDoubt);
        if !again || passed + pause >= policy.give_up_after {
            let (why, kind) = (explain(&error), kind(&error, answer));
            return Err(Failure { answer, in_doubt, attempts, passed, why, kind });
        }
        tokio::time::sleep(pause).await;
        pause = next_pause(policy, pause, fraction());
    }
}

/// Between the shortest pause and three times the last one, drawn, so that many clients spread out.
fn next_pause(policy: RetryPolicy, last: Duration, fraction: f64) -> Duration {
    let span = (last * 3).saturating_sub(policy.pause_min);
    (policy.pause_min + span.mul_f64(fraction)).min(policy.pause_max)
}

/// A number from 0 to 1. Without a source of random numbers pauses are not spread, which is no harm.
fn fraction() -> f64 {
    let mut bytes = [0; 4];
    let drawn = getrandom::fill(&mut bytes).is_ok();
    if drawn { f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX) } else { 0.5 }
}

pub(super) fn classify(error: &object_store::Error) -> Answer {
    use object_store::Error;
    match error {
        Error::NotFound { .. } if text_of(error).contains("NoSuchBucket") => Answer::NoBucket,
        Error::NotFound { .. } => Answer::NotFound,
        Error::AlreadyExists { .. } | Error::Precondition { .. } | Error::NotModified { .. } => {
            Answer::Condition
        }
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => Answer::Forbidden,
        Error::Generic { .. } => match (transport(error), status(error)) {
            // Whatever the client calls a failed request, only a failed connection is certain to have sent nothing.
            (Some(HttpErrorKind::Connect), _) => Answer::NotSent,
            (Some(_), _) => Answer::InDoubt,
            // A success whose body tells of an error, and what the server takes upon itself.
            (None, Some(200..=299 | 408 | 429 | 500 | 502..=504)) => Answer::InDoubt,
            // Of a listing the client does not tell these apart.
            (None, Some(404)) if text_of(error).contains("NoSuchBucket") => Answer::NoBucket,
            (None, Some(404)) => Answer::NotFound,
            (None, Some(401 | 403)) => Answer::Forbidden,
            (None, _) => Answer::Refused,
        },
        _ => Answer::Refused,
    }
}

fn kind(error: &object_store::Error, answer: Answer) -> ErrorKind {
    match answer {
        Answer::Forbidden => ErrorKind::PermissionDenied,
        Answer::NoBucket | Answer::NotFound => ErrorKind::NotFound,
        Answer::Condition => ErrorKind::AlreadyExists,
        Answer::NotSent => ErrorKind::NotConnected,
        Answer::InDoubt if transport(error) == Some(HttpErrorKind::Timeout) => ErrorKind::TimedOut,
        Answer::InDoubt => ErrorKind::ConnectionAborted,
        Answer::Refused => ErrorKind::Other,
    }
}

fn causes(error: &object_store::Error) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    std::iter::successors(error.source(), |error| (*error).source())
}

fn transport(error: &object_store::Error) -> Option<HttpErrorKind> {
    causes(error).find_map(|cause| cause.downcast_ref::<HttpError>()).map(HttpError::kind)
}

/// All that is said of an error. Its type with the status is private to the client, so that its text must do.
fn text_of(error: &object_store::Error) -> String {
    causes(error).map(|cause| cause.to_string()).collect::<Vec<_>>().join(": ")
}

fn status(error: &object_store::Error) -> Option<u16> {
    let text = text_of(error);
    if text.contains("Server returned error response") {
        return Some(200);
    }
    let (_, rest) = text.split_once("Server returned non-2xx status code: ")?;
    rest.get(..3)?.parse().ok()
}

/// What happened, in one line. Of what a server answers only its code and message: the rest of it repeats headers of the
/// request, the name of the key among them.
pub(super) fn explain(error: &object_store::Error) -> String {
    let text = text_of(error);
    if transport(error).is_none() && (text.contains("Server returned") || text.contains("<Error>"))
    {
        let status = status(error).map_or_else(String::new, |status| format!(" {status}"));
        let element = |name: &str| {
            let (_, rest) = text.split_once(&format!("<{name}>"))?;
            Some(rest.split_once("</")?.0.chars().take(300).collect::<String>())
        };
        let said = match (element("Code"), element("Message")) {
            (Some(code), Some(message)) => format!(" {code}: {message}"),
            (Some(code), None) => format!(" {code}"),
            _ => String::new(),
        };
        return format!("the server answered{status}{said}");
    }
    if transport(error).is_some() {
        // The innermost causes are the client's own words, from "error sending request" to "connection refused".
        let mut said: Vec<String> = Vec::new();
        for cause in causes(error).skip_while(|cause| !cause.is::<HttpError>()) {
            let cause = cause.to_string();
            if !said.iter().any(|before| before.contains(&cause)) {
                said.push(cause);
            }
        }
        return said.join(": ");
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(text: &str) -> object_store::Error {
        let source = io::Error::other(text.to_owned());
        object_store::Error::Generic { store: "S3", source: source.into() }
    }

    #[test]
    fn answers_are_told_apart_by_what_may_have_happened() {
        let non =
            |code: &str| answered(&format!("- Server returned non-2xx status code: {code}: "));
        for code in ["500 Internal Server Error", "503 Slow Down", "429 Too Many Requests"] {
            assert_eq!(classify(&non(code)), Answer::InDoubt, "{code}");
        }
        assert_eq!(classify(&non("400 Bad Request")), Answer::Refused);
        assert_eq!(classify(&non("501 Not Implemented")), Answer::Refused);
        assert_eq!(classify(&non("403 Forbidden")), Answer::Forbidden);
        assert_eq!(classify(&non("404 Not Found")), Answer::NotFound);
        let bucket = non("404 Not Found: <Code>NoSuchBucket</Code>");
        assert_eq!(classify(&bucket), Answer::NoBucket);
        let ok = answered("Server returned error response: <Error><Code>InternalError</Code>");
        assert_eq!(classify(&ok), Answer::InDoubt);
        let transport = |kind| {
            let source = HttpError::new(kind, io::Error::other("it broke"));
            object_store::Error::Generic { store: "S3", source: source.into() }
        };
        assert_eq!(classify(&transport(HttpErrorKind::Connect)), Answer::NotSent);
        for kind in [HttpErrorKind::Timeout, HttpErrorKind::Request, HttpErrorKind::Unknown] {
            assert_eq!(classify(&transport(kind)), Answer::InDoubt);
        }
        let missing = |text: &str| object_store::Error::NotFound {
            path: "a".to_owned(),
            source: text.to_owned().into(),
        };
        assert_eq!(classify(&missing("<Code>NoSuchKey</Code>")), Answer::NotFound);
        assert_eq!(classify(&missing("<Code>NoSuchBucket</Code>")), Answer::NoBucket);
    }

    #[test]
    fn an_explanation_has_the_servers_code_and_message_and_nothing_else_of_its_answer() {
        let error = answered(
            "Error performing GET http://x/y in 1ms - Server returned non-2xx status code: 403 Forbidden: \
             <Error><Code>SignatureDoesNotMatch</Code><Message>It does not match</Message>\
             <AWSAccessKeyId>AKIASECRET</AWSAccessKeyId><StringToSign>AWS4</StringToSign></Error>",
        );
        let text = explain(&error);
        assert_eq!(text, "the server answered 403 SignatureDoesNotMatch: It does not match");
    }

    #[test]
    fn pauses_grow_are_spread_and_stay_within_their_bounds() {
        let policy = RetryPolicy::default();
        let mut pause = policy.pause_min;
        for _ in 0..20 {
            let (least, most) = (next_pause(policy, pause, 0.0), next_pause(policy, pause, 1.0));
            assert_eq!(least, policy.pause_min);
            assert!(most > pause || most == policy.pause_max);
            pause = most;
        }
        assert_eq!(pause, policy.pause_max);
    }
}
