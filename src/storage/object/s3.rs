//! The client of the S3 API: where it gets its settings from, and the one request that it does not know.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, S3ConditionalPut};
use object_store::multipart::MultipartStore as _;
use object_store::path::Path as Key;
use object_store::signer::{SignedUrlOptions, Signer as _};
use object_store::{ClientConfigKey, ClientOptions, RetryConfig};

use super::retry::{Answer, Failure, RetryPolicy, retried};

/// A request that takes longer is given up. Units: of eight MiB, at 2 Mbit a second.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(30);
const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);
/// How long a signed request for the list of uploads is good for.
const SIGNED_FOR: Duration = Duration::from_secs(60);

/// A client for one bucket.
pub(super) struct Connected {
    pub(super) store: AmazonS3,
    pub(super) bucket: String,
    pub(super) prefix: String,
    /// Which server and bucket it is, for errors.
    pub(super) remedy: String,
}

/// Makes a client. Sends nothing yet.
pub(super) fn connect(
    url: &str,
    variables: impl IntoIterator<Item = (String, String)>,
) -> io::Result<Connected> {
    let invalid = |why: String| io::Error::new(ErrorKind::InvalidInput, why);
    let (bucket, prefix) = parse(url).map_err(invalid)?;
    let mut builder = AmazonS3Builder::new();
    for (name, value) in variables {
        if name.starts_with("AWS_")
            && let Ok(key) = name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>()
        {
            builder = builder.with_config(key, value);
        }
    }
    let value = |key| builder.get_config_value(&key);
    let endpoint =
        value(AmazonS3ConfigKey::S3Endpoint).or_else(|| value(AmazonS3ConfigKey::Endpoint));
    let region = value(AmazonS3ConfigKey::Region).unwrap_or_else(|| "us-east-1".to_owned());
    let client = |key| value(AmazonS3ConfigKey::Client(key));
    let allow_http = client(ClientConfigKey::AllowHttp).is_some_and(|v| is_true(&v));
    if !allow_http && endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http://")) {
        return Err(invalid(
            "AWS_ENDPOINT_URL is without encryption: use https, or set AWS_ALLOW_HTTP=true".into(),
        ));
    }
    let server = match &endpoint {
        Some(endpoint) => format!("endpoint {}", printable(endpoint)),
        None => "no AWS_ENDPOINT_URL".to_owned(),
    };
    let keys = match value(AmazonS3ConfigKey::AccessKeyId) {
        Some(_) => "",
        None => ", no AWS_ACCESS_KEY_ID",
    };
    let remedy = format!("{server}, region {region}, bucket {bucket}{keys}");
    let mut options = ClientOptions::new()
        .with_timeout(REQUEST_TIME_MAX)
        .with_connect_timeout(CONNECT_TIME_MAX)
        .with_allow_http(allow_http);
    for key in [ClientConfigKey::ProxyUrl, ClientConfigKey::AllowInvalidCertificates] {
        if let Some(value) = client(key) {
            options = options.with_config(key, value);
        }
    }
    // Without one the client panics. It may be there already: then it is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let no_retries =
        RetryConfig { max_retries: 0, retry_timeout: Duration::ZERO, ..RetryConfig::default() };
    let store = builder
        .with_bucket_name(&bucket)
        .with_client_options(options)
        .with_retry(no_retries)
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        // One request an object: every server has it, and an error is that object's own.
        .with_disable_bulk_delete(true)
        .build()
        .map_err(|error| invalid(format!("{}; {remedy}", super::retry::explain(&error))))?;
    Ok(Connected { store, bucket, prefix, remedy })
}

fn is_true(text: &str) -> bool {
    ["1", "true", "yes", "on", "y", "t"].contains(&text.to_ascii_lowercase().as_str())
}

/// The bucket and the prefix of `s3://bucket/prefix`.
fn parse(url: &str) -> Result<(String, String), String> {
    let rest = url.strip_prefix("s3://").ok_or("an object store is named as s3://bucket/prefix")?;
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let is_name = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    if !(3..=63).contains(&bucket.len()) || !bucket.chars().all(is_name) {
        return Err("the name of a bucket has 3 to 63 letters, digits, '-', '.' and '_': an object store is \
             named as s3://bucket/prefix, without credentials"
            .to_owned());
    }
    let prefix = prefix.trim_end_matches('/');
    let component = |part: &str| crate::ids::Name::new(part).is_ok();
    if !prefix.is_empty() && !prefix.split('/').all(component) {
        return Err(format!("{prefix:?} is no prefix: its components are to be names"));
    }
    Ok((bucket.to_owned(), prefix.to_owned()))
}

/// A URL as it may be shown: without a user's name and password, and without parameters.
pub(super) fn printable(url: &str) -> String {
    let url = url.split(['?', '#']).next().unwrap_or_default();
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (host, path) = rest.split_once('/').map_or((rest, None), |(host, path)| (host, Some(path)));
    let host = host.rsplit('@').next().unwrap_or_default();
    let path = path.map_or_else(String::new, |path| format!("/{path}"));
    format!("{scheme}://{host}{path}")
}

/// Uploads that nobody has finished.
pub(super) struct Uploads {
    store: Arc<AmazonS3>,
    client: reqwest::Client,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Upload {
    key: String,
    id: String,
    begun_unix_ms: i64,
}

impl Uploads {
    pub(super) fn new(store: Arc<AmazonS3>) -> Self {
        Self { store, client: reqwest::Client::new() }
    }

    /// Aborts those below `prefix` that were begun before `newest`. Returns their number.
    pub(super) async fn abort_older(
        &self,
        policy: RetryPolicy,
        prefix: &str,
        newest_unix_ms: i64,
    ) -> Result<u64, Failure> {
        let mut aborted = 0;
        let mut after = None;
        loop {
            let page = match retried(policy, || self.page(prefix, after.as_ref())).await {
                // The server does not list them, or not for us: then they are its own, or the operator's, to remove.
                Err(failure) if matches!(failure.answer, Answer::Refused | Answer::Forbidden) => {
                    tracing::debug!("unfinished uploads cannot be listed: {}", failure.into_io(""));
                    return Ok(aborted);
                }
                page => page?,
            };
            let (uploads, next) = parse_uploads(&page);
            for upload in
                uploads.into_iter().filter(|upload| upload.begun_unix_ms <= newest_unix_ms)
            {
                // A key of ours is one that is parsed as it was made.
                let Ok(key) = Key::parse(&upload.key) else { continue };
                let abort = || self.store.abort_multipart(&key, &upload.id);
                match retried(policy, abort).await {
                    Ok(()) => aborted += 1,
                    // Somebody else has, or it was finished.
                    Err(failure) if failure.answer == Answer::NotFound => {}
                    Err(failure) => return Err(failure),
                }
            }
            match next {
                Some(next) if after.as_ref() != Some(&next) => after = Some(next),
                _ => return Ok(aborted),
            }
        }
    }

    async fn page(
        &self,
        prefix: &str,
        after: Option<&(String, String)>,
    ) -> object_store::Result<String> {
        let mut query = vec![("uploads".to_owned(), String::new())];
        if !prefix.is_empty() {
            query.push(("prefix".to_owned(), format!("{prefix}/")));
        }
        if let Some((key, id)) = after {
            query.push(("key-marker".to_owned(), key.clone()));
            query.push(("upload-id-marker".to_owned(), id.clone()));
        }
        let options = SignedUrlOptions::default().with_query(query);
        let root = Key::default();
        let url =
            self.store.signed_url_opts(reqwest::Method::GET, &root, SIGNED_FOR, &options).await?;
        // The URL is signed: no error may show it.
        let failed = |error: reqwest::Error| object_store::Error::Generic {
            store: "S3",
            source: Box::new(object_store::client::HttpError::new(
                object_store::client::HttpErrorKind::Interrupted,
                error.without_url(),
            )),
        };
        let request = self.client.get(url).timeout(REQUEST_TIME_MAX);
        let answer = request.send().await.map_err(failed)?;
        let status = answer.status();
        let text = answer.text().await.map_err(failed)?;
        if status.is_success() {
            return Ok(text);
        }
        let source = format!("Server returned non-2xx status code: {status}: {text}").into();
        Err(object_store::Error::Generic { store: "S3", source })
    }
}

/// The uploads of an answer, and where the next page begins.
fn parse_uploads(xml: &str) -> (Vec<Upload>, Option<(String, String)>) {
    let uploads = xml.split("<Upload>").skip(1).filter_map(|upload| {
        let upload = upload.split("</Upload>").next()?;
        Some(Upload {
            key: element(upload, "Key")?,
            id: element(upload, "UploadId")?,
            begun_unix_ms: unix_ms(&element(upload, "Initiated")?)?,
        })
    });
    let uploads = uploads.collect();
    let next = element(xml, "IsTruncated")
        .filter(|truncated| truncated == "true")
        .and_then(|_| Some((element(xml, "NextKeyMarker")?, element(xml, "NextUploadIdMarker")?)));
    (uploads, next)
}

/// The text of the first element of that name.
fn element(xml: &str, name: &str) -> Option<String> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once(&format!("</{name}>"))?;
    let text = text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"");
    Some(text.replace("&#34;", "\"").replace("&apos;", "'").replace("&amp;", "&"))
}

/// Of `2026-01-31T12:34:56.789Z`; the fraction may be missing.
fn unix_ms(text: &str) -> Option<i64> {
    let number = |range: std::ops::Range<usize>| text.get(range)?.parse::<i64>().ok();
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let seconds = number(11..13)? * 3600 + number(14..16)? * 60 + number(17..19)?;
    if !text.ends_with('Z') {
        return None;
    }
    // Days since 1970-01-01, counted in years that begin in March, so that the leap day is the last one.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let days =
        era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + (153 * month + 2) / 5 + day
            - 719_469;
    Some((days * 86_400 + seconds) * 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_a_bucket_and_a_prefix_and_nothing_else() {
        let parsed = |url| parse(url).unwrap();
        assert_eq!(parsed("s3://bucket"), ("bucket".into(), String::new()));
        assert_eq!(parsed("s3://bucket/"), ("bucket".into(), String::new()));
        assert_eq!(parsed("s3://my.bucket/a/b/"), ("my.bucket".into(), "a/b".into()));
        for bad in
            ["s3:/b", "gs://bucket", "s3://", "s3://ab", "s3://bucket/a//b", "s3://bucket/../a"]
        {
            assert!(parse(bad).is_err(), "{bad}");
        }
        let error = parse("s3://key:secret@bucket/a").unwrap_err();
        assert!(!error.contains("secret"), "{error}");
    }

    #[test]
    fn what_is_shown_of_a_url_holds_no_password() {
        assert_eq!(printable("http://me:secret@host:1/a?X-Amz-Signature=abc"), "http://host:1/a");
        assert_eq!(printable("s3://key:secret@bucket"), "s3://bucket");
        assert_eq!(printable("s3://bucket/a"), "s3://bucket/a");
    }

    #[test]
    fn an_endpoint_without_encryption_must_be_allowed() {
        let variable = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let keys = [
            variable("AWS_ACCESS_KEY_ID", "key"),
            variable("AWS_SECRET_ACCESS_KEY", "topsecret"),
            variable("AWS_ENDPOINT_URL", "http://me:topsecret@127.0.0.1:1"),
        ];
        let error = connect("s3://bucket", keys.clone()).err().unwrap().to_string();
        assert!(error.contains("AWS_ALLOW_HTTP=true"), "{error}");
        assert!(!error.contains("topsecret"), "{error}");
        let allowed = keys.into_iter().chain([variable("AWS_ALLOW_HTTP", "true")]);
        let connected = connect("s3://bucket/a", allowed).unwrap();
        assert_eq!(
            connected.remedy,
            "endpoint http://127.0.0.1:1, region us-east-1, bucket bucket"
        );
    }

    #[test]
    fn a_list_of_uploads_is_read_page_by_page() {
        let xml = "<?xml?><ListMultipartUploadsResult><IsTruncated>true</IsTruncated>\
                   <NextKeyMarker>k2</NextKeyMarker><NextUploadIdMarker>u2</NextUploadIdMarker>\
                   <Upload><Key>a&amp;b</Key><UploadId>u1</UploadId><Initiated>2026-11-21T17:19:40.700Z</Initiated></Upload>\
                   <Upload><Key>k2</Key><UploadId>u2</UploadId><Initiated>1970-01-01T00:00:01Z</Initiated></Upload>\
                   </ListMultipartUploadsResult>";
        let (uploads, next) = parse_uploads(xml);
        assert_eq!(uploads[0].key, "a&b");
        assert_eq!(uploads[0].begun_unix_ms, 1_795_281_580_000);
        assert_eq!((uploads[1].id.as_str(), uploads[1].begun_unix_ms), ("u2", 1000));
        assert_eq!(next, Some(("k2".to_owned(), "u2".to_owned())));
        assert_eq!(parse_uploads("<ListMultipartUploadsResult/>"), (Vec::new(), None));
    }
}
