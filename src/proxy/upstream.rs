//! The upstream: the API that is sold.
//!
//! **Owns** which of several upstreams and targets a request goes to, and the failures of reaching them, each with its
//! status. **Promises** that bodies stream through; that an answer never takes longer to begin than the configured time,
//! counted from when the request was sent; and that a request goes to another target only if nothing of it was written to
//! the one before. **Does not** keep connections (the pools do), nor retry what was sent.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::Either;
use http::header::{CONNECTION, CONTENT_LENGTH, EXPECT, HOST, RETRY_AFTER, TE, TRANSFER_ENCODING};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use http_body::Body;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use pin_project_lite::pin_project;
use rustls_pki_types::ServerName;
use serde::{Deserialize, Serialize};

use super::balance::{Breaker, Load, MAX_TARGETS, Standing, Target, Tried, pick, soonest};
use super::body::{BodyBroken, RequestBody};
use super::dial::{Dialer, UpstreamTls};
use super::health::HealthCheck;
use super::pool::{Answer, Pool, SendError};
use super::streams::Streams;
use super::transfer::{HeadWithin, Progress, TooLong, Upload, UpstreamBody};
use super::tunnel::{Place, Switch, Tunnels, Wish};
use super::{Caller, grpc, headers};
use crate::causes::causes;
use crate::gate::{Way, refusal};

/// How long an answer's body may pause, unless said.
pub const MAX_ANSWER_PAUSE: Duration = Duration::from_secs(300);

/// Where an upstream is and how patient we are with it.
#[derive(Debug, Clone)]
pub struct UpstreamSettings {
    /// The URLs of its targets, at least one: scheme, authority, and perhaps a path that goes before every request's path.
    pub urls: Vec<Uri>,
    /// How long a connection may take.
    pub connect_timeout: Duration,
    /// How long the head of an answer may take, once the request was sent.
    pub response_timeout: Duration,
    /// How long an answer's body or a tunnel may stand still.
    pub idle_timeout: Duration,
    /// Whether it speaks HTTP/2, and nothing else: by prior knowledge on `http`, by ALPN on `https`.
    pub http2: bool,
    /// How it is known, and how we are known to it.
    pub tls: UpstreamTls,
    /// Whether and how its targets are asked how they are.
    pub health: Option<HealthCheck>,
    /// Whether and when a target is left alone.
    pub breaker: Option<Breaker>,
}

impl UpstreamSettings {
    /// One target, and what is usual.
    pub fn of(url: Uri) -> Self {
        Self {
            urls: vec![url],
            connect_timeout: Duration::from_secs(5),
            response_timeout: Duration::from_secs(60),
            idle_timeout: MAX_ANSWER_PAUSE,
            http2: false,
            tls: UpstreamTls::default(),
            health: None,
            breaker: None,
        }
    }
}

/// Why there is no answer of the upstream's. The client learns which, and is charged for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamError {
    /// No connection, or it broke before the head of the answer.
    #[error("the upstream cannot be reached")]
    Unreachable,
    /// All of its targets have failed too often and are left alone.
    #[error("the upstream is unavailable; nothing was charged, and the same payment is good again")]
    Unavailable {
        /// When one of them is tried again, seconds.
        retry_after_s: u64,
    },
    /// The head of the answer took too long.
    #[error("the upstream took too long")]
    TimedOut,
    /// There are as many tunnels as there may be.
    #[error("too many connections are upgraded; nothing was charged, and the same payment is good again")]
    TooManyTunnels,
    /// The client broke its request off.
    #[error("the request's body broke off")]
    Body,
    /// The client stopped in the middle of its request.
    #[error("the request's body paused for too long")]
    BodyPaused,
    /// The client sent more than a request's body may have.
    #[error("the request's body is larger than this server takes")]
    BodyTooLarge,
    /// The request's target cannot be expressed as a URL of the upstream.
    #[error("the request target cannot be forwarded")]
    Target,
}

impl From<&BodyBroken> for UpstreamError {
    fn from(broken: &BodyBroken) -> Self {
        match broken {
            BodyBroken::Off(_) => Self::Body,
            BodyBroken::Paused => Self::BodyPaused,
            BodyBroken::TooLarge => Self::BodyTooLarge,
        }
    }
}

impl UpstreamError {
    pub(super) fn code(self) -> (StatusCode, &'static str) {
        match self {
            Self::Unreachable => (StatusCode::BAD_GATEWAY, "upstream_unreachable"),
            Self::Unavailable { .. } => (StatusCode::SERVICE_UNAVAILABLE, "upstream_unavailable"),
            Self::TimedOut => (StatusCode::GATEWAY_TIMEOUT, "upstream_timeout"),
            Self::TooManyTunnels => (StatusCode::SERVICE_UNAVAILABLE, "too_many_tunnels"),
            Self::Body => (StatusCode::BAD_REQUEST, "body_broken"),
            Self::BodyPaused => (StatusCode::REQUEST_TIMEOUT, "body_timeout"),
            Self::BodyTooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "body_too_large"),
            Self::Target => (StatusCode::BAD_REQUEST, "bad_target"),
        }
    }

    /// After how many seconds the client may come again, if it may.
    fn retry_after_s(self) -> Option<u64> {
        match self {
            Self::Unavailable { retry_after_s } => Some(retry_after_s),
            Self::TooManyTunnels => Some(1),
            _ => None,
        }
    }
}

/// Why there is no upstream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoUpstream {
    /// One of its URLs cannot be used.
    #[error("the upstream needs an http or https URL with a host")]
    Url,
    /// It has none, or too many.
    #[error("an upstream has one target at least, and {MAX_TARGETS} at most")]
    Targets,
    /// It wants TLS, and there is nobody to trust.
    #[error(
        "no trusted root certificates were found, so https cannot be used; install your system's CA certificates, or name \
         the upstream's own with ca"
    )]
    NoRoots,
    /// A file for TLS cannot be used.
    #[error("{}: {reason}", path.display())]
    Tls {
        /// Which.
        path: PathBuf,
        /// Why. Never what is in it.
        reason: String,
    },
    /// The name its certificate should have is none.
    #[error("{0:?} is no name for a certificate")]
    ServerName(String),
}

/// A target, as operators see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetState {
    /// The name of its upstream; none for the usual one.
    pub upstream: Option<String>,
    /// Where it is.
    pub url: String,
    /// How it stands.
    pub standing: Standing,
    /// How many requests it has, bodies of answers included; not counted where it is the only target.
    pub requests: Option<usize>,
}

/// The bottom of the stack: the usual upstream, and those that routes name. Cloning shares the pools.
#[derive(Debug, Clone)]
pub struct Upstream {
    usual: Arc<Group>,
    named: Arc<[(Arc<str>, Arc<Group>)]>,
    client_scheme: HeaderValue,
}

/// The targets of one upstream, as one core reaches them.
#[derive(Debug)]
struct Group {
    known: Arc<Known>,
    links: Vec<Link>,
    /// Counts the requests, where there are several targets.
    turn: AtomicUsize,
}

/// What all cores know of an upstream.
#[derive(Debug)]
struct Known {
    response_timeout: Duration,
    idle_timeout: Duration,
    targets: Vec<Arc<Target>>,
    /// Whether a target must be chosen and watched: not where there is only one, and nothing to notice about it.
    chooses: bool,
    health: Option<HealthCheck>,
    /// Whether somebody asks the targets how they are.
    attended: AtomicBool,
}

/// One target as one core reaches it.
#[derive(Debug, Clone)]
pub(super) struct Link {
    lines: Arc<Lines>,
    /// Its own name, for the `Host` header.
    host: HeaderValue,
    base: String,
    /// Where requests name their whole URL, as in HTTP/2.
    origin: Option<(Scheme, Authority)>,
}

#[derive(Debug)]
enum Lines {
    /// One request at a time.
    Each(Pool),
    /// Many at once.
    Shared(Streams),
}

impl Upstream {
    /// Makes the pools; nothing is connected yet.
    ///
    /// # Errors
    /// See [`NoUpstream`].
    pub fn new(settings: &UpstreamSettings) -> Result<Self, NoUpstream> {
        let usual = Arc::new(Group::new(settings)?);
        Ok(Self { usual, named: Arc::new([]), client_scheme: HeaderValue::from_static("http") })
    }

    /// The same with others that routes can name.
    ///
    /// # Errors
    /// See [`NoUpstream`].
    pub fn with_named<'a>(
        self,
        named: impl IntoIterator<Item = (&'a str, &'a UpstreamSettings)>,
    ) -> Result<Self, NoUpstream> {
        let group = |(name, settings): (&str, _)| Ok((Arc::from(name), Arc::new(Group::new(settings)?)));
        Ok(Self { named: named.into_iter().map(group).collect::<Result<_, _>>()?, ..self })
    }

    /// The same upstream with connections of its own.
    pub(super) fn apart(&self) -> Self {
        let named = self.named.iter().map(|(name, group)| (Arc::clone(name), Arc::new(group.apart())));
        Self { usual: Arc::new(self.usual.apart()), named: named.collect(), ..self.clone() }
    }

    /// Tells the upstream with which scheme clients come. We speak no TLS ourselves: where it ends in front of us, only
    /// the public URL knows, and an upstream that is told `http` may redirect to `https` for ever.
    pub(super) fn seen_at(self, public_url: &str) -> Self {
        let https = public_url.get(..6).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https:"));
        Self { client_scheme: HeaderValue::from_static(if https { "https" } else { "http" }), ..self }
    }

    /// Begins to ask the targets how they are, where that is wanted and nobody does yet. What begins lasts as long as the
    /// runtime it is called in.
    pub(super) fn attend(&self) {
        let groups = std::iter::once(&self.usual).chain(self.named.iter().map(|(_, group)| group));
        for group in groups {
            let Some(health) = &group.known.health else { continue };
            if !group.known.attended.swap(true, Ordering::Relaxed) {
                for (link, target) in group.links.iter().zip(&group.known.targets) {
                    tokio::spawn(health.clone().watch(link.clone(), Arc::clone(target)));
                }
            }
        }
    }

    /// How every target stands, the usual upstream's first.
    pub fn targets(&self) -> Vec<TargetState> {
        let usual = std::iter::once((None, &self.usual));
        let named = self.named.iter().map(|(name, group)| (Some(name.to_string()), group));
        let state = |(upstream, group): (Option<String>, &Arc<Group>)| {
            let counts = group.known.targets.len() > 1;
            let states = group.known.targets.iter().map(move |target| TargetState {
                upstream: upstream.clone(),
                url: target.url.clone(),
                standing: target.standing(),
                requests: counts.then(|| target.load()),
            });
            states.collect::<Vec<_>>()
        };
        usual.chain(named).flat_map(state).collect()
    }

    /// Asks every target for its base path, for no client: the status of each answer, or why there is none.
    pub(crate) async fn look(&self) -> Vec<(TargetState, Result<u16, String>)> {
        let groups = std::iter::once(&self.usual).chain(self.named.iter().map(|(_, group)| group));
        let links = groups.flat_map(|group| group.links.iter().map(|link| (link, group.known.response_timeout)));
        let answers = links.map(async |(link, patience)| {
            let root = PathAndQuery::from_static("/");
            link.look(Method::HEAD, &root, patience).await.map(|status| status.as_u16())
        });
        let answers = futures_util::future::join_all(answers).await;
        self.targets().into_iter().zip(answers).collect()
    }

    /// The upstream's answer, or ours in its place. `id` is the request's, for the log.
    pub(super) fn ask<'a>(
        &'a self,
        request: Request<RequestBody>,
        caller: &Caller,
        id: &'a HeaderValue,
        tunnels: &Tunnels,
    ) -> impl Future<Output = Response<UpstreamBody>> + use<'a> {
        let head_only = request.method() == Method::HEAD;
        match self.set_off(request, caller, id, tunnels) {
            Ok(asking) => Either::Left(asking),
            Err(error) => Either::Right(std::future::ready(respond(error, head_only))),
        }
    }

    /// The upstream that this request's route names, or the usual one.
    fn group(&self, request: &Request<RequestBody>) -> Option<&Group> {
        match request.extensions().get::<Arc<Way>>().and_then(|way| way.upstream.as_ref()) {
            None => Some(&self.usual),
            Some(wanted) => self.named.iter().find(|(name, _)| name == wanted).map(|(_, group)| &**group),
        }
    }

    /// Sends a request. All that can be done before the first wait is done here, because a request is large, and whatever
    /// waits with it in its hands has room for it.
    fn set_off<'a>(
        &'a self,
        mut request: Request<RequestBody>,
        caller: &Caller,
        id: &'a HeaderValue,
        tunnels: &Tunnels,
    ) -> Result<Asking<'a, impl Future<Output = Sent> + use<'a>>, UpstreamError> {
        let Some(group) = self.group(&request) else {
            tracing::error!(request = headers::text(id), "a route names an upstream that is not there");
            return Err(UpstreamError::Unreachable);
        };
        let asked = request.uri().path_and_query().cloned().ok_or(UpstreamError::Target)?;
        let choice = group.choose(Tried::default())?;
        let head_only = request.method() == Method::HEAD;
        headers::prepare(&mut request, caller, &choice.link.host, &self.client_scheme);
        let switching = match Wish::granted(&mut request) {
            None => None,
            Some((wish, client)) => {
                let place = tunnels.enter(caller).ok_or(UpstreamError::TooManyTunnels)?;
                wish.say(request.headers_mut());
                // `Connection` names only the wish now, and there are no trailers in a tunnel.
                request.headers_mut().remove(TE);
                Some(Box::new(Switching { wish, client, place }))
            }
        };
        if choice.link.origin.is_some() && grpc::is_call(Version::HTTP_2, request.headers()) {
            // Either side of a call may be silent while the other one speaks.
            request.body_mut().may_pause_for(group.known.idle_timeout);
        }
        let mut request = request.map(Upload::of);
        let upload = request.body().progress();
        choice.link.address(&mut request, &asked)?;
        let sending = choice.link.send(request, group.known.response_timeout, switching.is_some());
        let rest = Some(Rest { group, choice, asked, upload, switching, id, head_only });
        Ok(Asking { sending, rest, elsewhere: None })
    }
}

pin_project! {
    /// A request that was sent to the target that was chosen first.
    struct Asking<'a, F> {
        #[pin]
        sending: F,
        rest: Option<Rest<'a>>,
        // Where that target could not be connected to. There are not many of these, so they are in boxes.
        elsewhere: Option<Pin<Box<dyn Future<Output = Response<UpstreamBody>> + Send + 'a>>>,
    }
}

/// What came of sending a request.
type Sent = Result<Result<Answer, SendError>, TooLong>;

impl<F: Future<Output = Sent>> Future for Asking<'_, F> {
    type Output = Response<UpstreamBody>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Some(elsewhere) = this.elsewhere {
            return elsewhere.as_mut().poll(context);
        }
        let sent = ready!(this.sending.poll(context));
        let mut rest = this.rest.take().expect("nobody asks again for an answer that was given");
        match rest.choice.judge(sent, rest.upload.as_deref(), rest.id) {
            Ok(answer) => Poll::Ready(rest.finish(answer)),
            Err(Failure::Final(error)) => Poll::Ready(respond(error, rest.head_only)),
            Err(Failure::Unsent(unsent)) => {
                let elsewhere = async move {
                    let head_only = rest.head_only;
                    match rest.go_elsewhere(unsent).await {
                        Ok(answer) => rest.finish(answer),
                        Err(error) => respond(error, head_only),
                    }
                };
                this.elsewhere.insert(Box::pin(elsewhere)).as_mut().poll(context)
            }
        }
    }
}

/// What must be known of a request that was sent.
struct Rest<'a> {
    group: &'a Group,
    choice: Choice<'a>,
    asked: PathAndQuery,
    /// Where there is a body.
    upload: Option<Arc<Progress>>,
    switching: Option<Box<Switching>>,
    id: &'a HeaderValue,
    head_only: bool,
}

impl Rest<'_> {
    /// Sends the request to other targets, until one can be connected to.
    async fn go_elsewhere(&mut self, mut unsent: Box<Request<Upload>>) -> Result<Answer, UpstreamError> {
        let mut tried = Tried::default();
        loop {
            tried.add(self.choice.index);
            // Where there is no other, this is what happened.
            self.choice = self.group.choose(tried).map_err(|_| UpstreamError::Unreachable)?;
            let link = self.choice.link;
            unsent.headers_mut().insert(HOST, link.host.clone());
            link.address(&mut unsent, &self.asked)?;
            let sent = link.send(*unsent, self.group.known.response_timeout, self.switching.is_some()).await;
            match self.choice.judge(sent, self.upload.as_deref(), self.id) {
                Ok(answer) => return Ok(answer),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Unsent(again)) => unsent = again,
            }
        }
    }

    /// What the client gets of an answer.
    fn finish(self, (mut response, stream): Answer) -> Response<UpstreamBody> {
        let max_pause = self.group.known.idle_timeout;
        if let Some(switching) = self.switching
            && switching.wish.is_met(&response)
        {
            return switching.done(response, self.choice.load, max_pause);
        }
        if response.status().is_informational() {
            // No such upgrade was asked for, so this is no answer, and what follows it no HTTP.
            let status = response.status().as_u16();
            tracing::warn!(request = headers::text(self.id), status, "the upstream switched protocols unasked");
            return respond(UpstreamError::Unreachable, self.head_only);
        }
        // The version belongs to the connection: the client's says how its answer is framed.
        *response.version_mut() = Version::HTTP_11;
        headers::strip_hop_by_hop(response.headers_mut());
        response.map(|body| UpstreamBody::upstream(body, max_pause, (self.choice.load, stream)))
    }
}

/// A target that was chosen for a request.
struct Choice<'g> {
    index: usize,
    link: &'g Link,
    /// Where there is something to notice about it.
    target: Option<&'g Arc<Target>>,
    /// Where its requests are counted.
    load: Option<Load>,
}

/// Why a request has no answer from the target that was chosen.
enum Failure {
    /// It can go to another one.
    Unsent(Box<Request<Upload>>),
    Final(UpstreamError),
}

/// What a request for another protocol needs beside itself.
struct Switching {
    wish: Wish,
    client: OnUpgrade,
    place: Place,
}

impl Switching {
    /// The answer that switches, with the tunnel it leads to.
    fn done(self, mut response: Response<Incoming>, load: Option<Load>, max_pause: Duration) -> Response<UpstreamBody> {
        let upstream = hyper::upgrade::on(&mut response);
        *response.version_mut() = Version::HTTP_11;
        headers::strip_hop_by_hop(response.headers_mut());
        let mut response = response.map(|_| UpstreamBody::own(Bytes::new()));
        let switch = Switch::new(self.wish, self.client, upstream, (self.place, load), max_pause);
        response.extensions_mut().insert(switch);
        response
    }
}

impl Choice<'_> {
    /// What became of a request, as far as its target and the client must know.
    fn judge(&self, sent: Sent, upload: Option<&Progress>, id: &HeaderValue) -> Result<Answer, Failure> {
        let error = match sent {
            Ok(Ok((response, taken))) => {
                if let Some(target) = self.target {
                    target.answered(response.status());
                }
                return Ok((response, taken));
            }
            Ok(Err(error)) => error,
            Err(_) => {
                self.failed();
                return Err(Failure::Final(UpstreamError::TimedOut));
            }
        };
        if let Some(broken) = upload.and_then(Progress::broken) {
            return Err(Failure::Final(broken));
        }
        // A connection that several waited for has failed once.
        if !error.was_anothers() {
            self.failed();
        }
        let (id, target) = (headers::text(id), self.target.map(|target| target.url.as_str()));
        tracing::warn!(request = id, target, error = %causes(&error), "the upstream gave no answer");
        Err(match error {
            SendError::Connect { unsent, .. } => Failure::Unsent(unsent),
            SendError::Answer(_) => Failure::Final(UpstreamError::Unreachable),
        })
    }

    fn failed(&self) {
        if let Some(target) = self.target {
            target.failed();
        }
    }
}

impl Group {
    fn new(settings: &UpstreamSettings) -> Result<Self, NoUpstream> {
        let UpstreamSettings { urls, breaker, health, .. } = settings;
        if urls.is_empty() || urls.len() > MAX_TARGETS {
            return Err(NoUpstream::Targets);
        }
        let links = urls.iter().map(|url| Link::new(settings, url)).collect::<Result<Vec<_>, _>>()?;
        let target = |url: &Uri| Arc::new(Target::new(url.to_string().trim_end_matches('/').to_owned(), *breaker));
        let known = Known {
            response_timeout: settings.response_timeout,
            idle_timeout: settings.idle_timeout,
            targets: urls.iter().map(target).collect(),
            chooses: urls.len() > 1 || breaker.is_some(),
            health: health.clone(),
            attended: AtomicBool::new(false),
        };
        Ok(Self { known: Arc::new(known), links, turn: AtomicUsize::new(0) })
    }

    fn apart(&self) -> Self {
        let links = self.links.iter().map(Link::apart).collect();
        Self { known: Arc::clone(&self.known), links, turn: AtomicUsize::new(0) }
    }

    fn choose(&self, tried: Tried) -> Result<Choice<'_>, UpstreamError> {
        let targets = &self.known.targets;
        if !self.known.chooses {
            let link = self.links.first().filter(|_| tried.is_empty()).ok_or(UpstreamError::Unreachable)?;
            return Ok(Choice { index: 0, link, target: None, load: None });
        }
        let chosen = pick(targets, self.turn.fetch_add(1, Ordering::Relaxed), tried);
        let Some((index, link, target)) =
            chosen.and_then(|index| Some((index, self.links.get(index)?, targets.get(index)?)))
        else {
            // Whole seconds, none of them too early.
            let retry_after_s = soonest(targets).as_secs().saturating_add(1);
            return Err(UpstreamError::Unavailable { retry_after_s });
        };
        let load = (targets.len() > 1).then(|| Load::at(target));
        Ok(Choice { index, link, target: Some(target), load })
    }
}

impl Link {
    fn new(settings: &UpstreamSettings, url: &Uri) -> Result<Self, NoUpstream> {
        let UpstreamSettings { tls, connect_timeout, http2, .. } = settings;
        let (Some(scheme), Some(authority)) = (url.scheme(), url.authority()) else { return Err(NoUpstream::Url) };
        let name = authority.host();
        if ![Scheme::HTTP, Scheme::HTTPS].contains(scheme) || name.is_empty() {
            return Err(NoUpstream::Url);
        }
        let encrypted = *scheme == Scheme::HTTPS;
        // What is never used need not be readable.
        let config = if encrypted { tls.client_config()? } else { crate::tls::client_config() };
        let server_name =
            |name: &String| ServerName::try_from(name.clone()).map_err(|_| NoUpstream::ServerName(name.clone()));
        let server_name = tls.server_name.as_ref().map(server_name).transpose()?;
        let usual_port = if encrypted { 443 } else { 80 };
        let host = match authority.port_u16().filter(|port| *port != usual_port) {
            Some(port) => format!("{name}:{port}"),
            None => name.to_owned(),
        };
        let authority = Authority::try_from(host.as_str()).map_err(|_| NoUpstream::Url)?;
        let dialer = Dialer::new(config, server_name, url.clone(), *connect_timeout, *http2);
        Ok(Self {
            lines: Arc::new(Lines::of(dialer)),
            host: HeaderValue::try_from(host).map_err(|_| NoUpstream::Url)?,
            base: url.path().trim_end_matches('/').to_owned(),
            origin: http2.then(|| (scheme.clone(), authority)),
        })
    }

    fn apart(&self) -> Self {
        Self { lines: Arc::new(Lines::of(self.lines.dialer().clone())), ..self.clone() }
    }

    /// Names the same path and query behind this target's base path, as its protocol wants it.
    fn address<B: Body>(&self, request: &mut Request<B>, asked: &PathAndQuery) -> Result<(), UpstreamError> {
        let path = if self.base.is_empty() {
            asked.clone()
        } else {
            PathAndQuery::try_from(format!("{}{asked}", self.base)).map_err(|_| UpstreamError::Target)?
        };
        let Some((scheme, authority)) = &self.origin else {
            *request.uri_mut() = Uri::from(path);
            *request.version_mut() = Version::HTTP_11;
            let sized = request.body().is_end_stream() || request.body().size_hint().exact().is_some();
            // Said, because a `GET` that says nothing of a body is sent without the one it has.
            if !sized && !request.headers().contains_key(CONTENT_LENGTH) {
                request.headers_mut().insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
            }
            return Ok(());
        };
        let uri = Uri::builder().scheme(scheme.clone()).authority(authority.clone()).path_and_query(path);
        *request.uri_mut() = uri.build().map_err(|_| UpstreamError::Target)?;
        *request.version_mut() = Version::HTTP_2;
        let headers = request.headers_mut();
        // It is part of the URL there.
        headers.remove(HOST);
        // The body is sent at once, and asking for it is what tells the client to send it.
        headers.remove(EXPECT);
        // Nothing is about the connection there; and what it names would go with it, `TE` too.
        headers.remove(CONNECTION);
        // Trailers go through here, and servers of gRPC insist on that.
        headers.insert(TE, HeaderValue::from_static("trailers"));
        Ok(())
    }

    /// Sends a request whose answer has so much time; `alone` if it may change the protocol of its connection.
    fn send(
        &self,
        request: Request<Upload>,
        limit: Duration,
        alone: bool,
    ) -> HeadWithin<impl Future<Output = Result<Answer, SendError>> + use<'_>> {
        let boxed: Pin<Box<dyn Future<Output = Result<Answer, SendError>> + Send + '_>>;
        let progress = request.body().progress();
        let sending = match &*self.lines {
            Lines::Each(pool) if !alone => Either::Left(pool.send(request)),
            // What follows is in boxes, so that other requests have no room for it.
            Lines::Each(pool) => {
                boxed = Box::pin(pool.send_alone(request));
                Either::Right(boxed)
            }
            // HTTP/2 has no upgrades: what asks for one is answered as if it had not. The config says so.
            Lines::Shared(streams) => {
                boxed = Box::pin(streams.send(request));
                Either::Right(boxed)
            }
        };
        HeadWithin::new(limit, progress, sending)
    }

    /// Asks it for a path of its own, for no client: the status of the answer.
    pub(super) async fn look(
        &self,
        method: Method,
        path: &PathAndQuery,
        limit: Duration,
    ) -> Result<StatusCode, String> {
        let mut request = Request::new(Upload::of(super::body::none()));
        *request.method_mut() = method;
        request.headers_mut().insert(HOST, self.host.clone());
        self.address(&mut request, path).map_err(|error| error.to_string())?;
        match self.send(request, limit, false).await {
            Ok(Ok((response, _))) => Ok(response.status()),
            Ok(Err(error)) => Err(causes(&error)),
            Err(TooLong) => Err("it took too long".to_owned()),
        }
    }
}

impl Lines {
    fn of(dialer: Dialer) -> Self {
        if dialer.is_http2() { Self::Shared(Streams::new(dialer)) } else { Self::Each(Pool::new(dialer)) }
    }

    fn dialer(&self) -> &Dialer {
        match self {
            Self::Each(pool) => pool.dialer(),
            Self::Shared(streams) => streams.dialer(),
        }
    }
}

fn respond(error: UpstreamError, head_only: bool) -> Response<UpstreamBody> {
    let (status, code) = error.code();
    let mut response = refusal(status, code, &error.to_string());
    if let Some(seconds) = error.retry_after_s() {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response.map(|body| UpstreamBody::own(if head_only { Bytes::new() } else { body }))
}
