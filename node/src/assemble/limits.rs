//! What the operating system allows this process: raised where it may be, said where it matters.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Connections, segments and files of metadata: below this a busy node runs out.
const FILES_WANTED: u64 = 16_384;

/// Raises the soft limit of open files to the hard one.
pub(super) fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::warn!(%error, soft = limit.current, hard = limit.maximum, "raise the limit of open files");
        }
    }
    if let Some(current) = getrlimit(Resource::Nofile).current
        && current < FILES_WANTED
    {
        tracing::warn!(
            current,
            wanted = FILES_WANTED,
            "few files may be open at once: raise the hard limit (LimitNOFILE= in a systemd unit)"
        );
    }
}

/// Says when the kernel may refuse to pin the buffers that io_uring is to use.
pub(super) fn check_locked_memory(pool_bytes: u64) {
    if rustix::process::geteuid().is_root() {
        return;
    }
    if let Some(current) = getrlimit(Resource::Memlock).current
        && current < pool_bytes
    {
        tracing::warn!(
            allowed_bytes = current,
            wanted_bytes = pool_bytes,
            "little memory may be locked, so io_uring may refuse registered buffers: raise it (LimitMEMLOCK= in a systemd \
             unit, --ulimit memlock in a container) or lower storage.large_buffers"
        );
    }
}
