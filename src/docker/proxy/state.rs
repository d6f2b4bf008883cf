//! The proxy of one session, made of parts. Each part has its own file and its own state, which no other file
//! can reach; a request calls the parts it needs (`dispatch`, `create`).

use std::sync::Arc;

use hyper::StatusCode;

use super::ProxySettings;
use super::builds::Builds;
use super::engine_client::{EngineClient, Refusal};
use super::exit_watch::ExitWatch;
use super::guard::KeyGuard;
use super::image_configs::ImageConfigs;
use super::inputs::InputMounts;
use super::leases::Leases;
use super::logs::Logs;
use super::lookups::Lookups;
use super::mount_sources::MountScan;
use super::notices::Notices;
use super::places::AttachmentChooser;
use super::reply_filter::ReplyFilter;
use super::upload::Uploads;

/// The proxy of one session. All its listeners share it: a request that came through one of them, such as a
/// create that is not answered yet, can make another one refuse a request.
#[derive(Debug)]
pub struct Proxy {
    pub(super) settings: Arc<ProxySettings>,
    pub(super) engine: EngineClient,
    pub(super) lookups: Lookups,
    pub(super) leases: Leases,
    pub(super) places: AttachmentChooser,
    pub(super) exits: ExitWatch,
    pub(super) images: ImageConfigs,
    pub(super) logs: Logs,
    pub(super) mounts: Arc<MountScan>,
    pub(super) guard: Arc<KeyGuard>,
    pub(super) uploads: Uploads,
    pub(super) inputs: InputMounts,
    pub(super) builds: Arc<Builds>,
    /// Images whose `ENTRYPOINT` was cleared.
    pub(super) entrypoints: Notices,
    pub(super) filter: ReplyFilter,
}

impl Proxy {
    pub fn new(settings: Arc<ProxySettings>) -> Self {
        let engine = EngineClient::new(settings.upstream.clone(), settings.tasks.clone());
        let lookups = Lookups::new(engine.clone(), settings.reserved.clone());
        let leases = Leases::new(settings.ask.clone(), lookups.clone());
        let mounts = Arc::new(MountScan::new(&settings, lookups.clone()));
        let guard = Arc::new(KeyGuard::new(&settings, lookups.clone(), leases.clone(), mounts.clone()));
        let places =
            AttachmentChooser::new(settings.clone(), engine.clone(), lookups.clone(), leases.clone());
        Self {
            places,
            builds: Arc::new(Builds::new(&settings, engine.clone(), guard.clone())),
            uploads: Uploads::new(&settings, engine.clone(), lookups.clone(), guard.clone()),
            guard,
            exits: ExitWatch::new(settings.exits.clone(), engine.clone(), settings.tasks.clone()),
            leases,
            logs: Logs::new(settings.exits.clone(), lookups.clone(), engine.clone(), settings.tasks.clone()),
            mounts,
            inputs: InputMounts::new(&settings, engine.clone()),
            entrypoints: Notices::new(settings.console.clone()),
            filter: ReplyFilter::new(lookups.clone(), settings.reserved.clone()),
            images: ImageConfigs::new(lookups.clone()),
            settings,
            engine,
            lookups,
        }
    }

    pub fn settings(&self) -> &Arc<ProxySettings> {
        &self.settings
    }

    pub(super) fn closing(&self) -> Result<(), Refusal> {
        if self.settings.closing.is_set() {
            return Err(Refusal::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "the session is ending and takes no new containers",
            ));
        }
        Ok(())
    }
}
