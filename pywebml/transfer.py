"""Stored models beyond downloads: to and from folders and archives, and how much room they have."""

from __future__ import annotations

from typing import Any

from pywebml.errors import OptionsError
from pywebml.hub import Selection
from pywebml.hub import archive as archives
from pywebml.options import PipelineOptions, get_configuration
from pywebml.platform import StoreUsage, get_platform
from pywebml.progress import ProgressCallback, TransferProgress, ignore_progress
from pywebml.sources import model_hub


async def export_models(
    selection: Selection | None = None, /, *, target: Any = None, archive: bool | None = None, **fields: str | None
) -> Any:
    """Write stored models to a folder or an archive, in hub layout.

    Args:
        selection: Which. Alternatively give its fields by name: `model="org/name"`.
        target: In CPython the path of a folder or of an archive. In the browser a `FileSystemDirectoryHandle`, a
            `FileSystemFileHandle`, or None.
        archive: Whether it is one tar archive; None: for a path that ends in `.tar`, and without a target.
        **fields: Fields of `Selection`: `hub`, `model`, `revision`, `task_name`, `engine_id`. None at all: everything.

    Returns:
        In the browser, without a target, the archive as a `Blob`; else None.

    Raises:
        OptionsError: Nothing is selected, or the same model of two hubs.
        StoreError: It cannot be written.
    """
    if selection is not None and fields:
        raise OptionsError("Give either a Selection or its fields, not both.", field="selection", value=None)
    if archive is None:
        archive = target is None or str(target).lower().endswith(".tar")
    chosen = selection or Selection(**fields)
    return await archives.export_models(await get_platform(), chosen, target, archive=archive)


async def import_models(
    source: Any,
    options: PipelineOptions | None = None,
    /,
    *,
    on_progress: ProgressCallback = ignore_progress,
    **fields: Any,
) -> list[tuple[str, str]]:
    """Read models from a folder or a tar archive in hub layout into the store, as if they came from a hub.

    Args:
        source: In CPython the path of a folder or of an archive. In the browser a `File`, a list of them, a
            `FileSystemFileHandle` or a `FileSystemDirectoryHandle`.
        options: Whose hub the models are of from now on (`model_hub`, `model_hub_root_url`, `model_hub_url_template`);
            default: the configured one.
        on_progress: Gets `importing` events for every file.
        **fields: These options by name.

    Returns:
        Model and revision of what was imported.

    Raises:
        OptionsError: No hub is configured.
        ForbiddenURLError: The allow and deny list does not let one of the models through. Nothing was imported.
        ArchiveError: It is no folder or archive of models, or not whole. Nothing was imported.
        IntegrityError: A file is not what its manifest says. Files before it are imported, this one is not.
        StoreError: There is no room, or the store cannot be used.
    """
    if options is not None and fields:
        raise OptionsError("Give either a PipelineOptions or single options, not both.", field="options", value=None)
    platform, configuration = await get_platform(), get_configuration()
    hub = model_hub(platform, configuration, options or PipelineOptions.from_mapping(fields))

    def start_progress(model: str, revision: str, path: str, url: str) -> TransferProgress:
        metadata = {"model": model, "revision": revision, "file": path, "url": url, "taskName": None}
        return TransferProgress(on_progress, "importing", url, metadata)

    return await archives.import_models(
        platform,
        hub.address,
        source,
        limit=configuration.max_cache_bytes,
        check_allowed=hub.check_allowed,
        start_progress=start_progress,
    )


async def storage_usage() -> StoreUsage:
    """How much room the stored files take, and how much more there is, in bytes."""
    return await (await get_platform()).blobs.usage()


async def persist_storage() -> bool:
    """Ask the browser never to evict the stored files; whether that was granted. Elsewhere nobody evicts them."""
    return await (await get_platform()).blobs.persist()
