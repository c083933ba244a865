"""`hearth serve [MODEL]`: flags in, a running server out.

The function's parameters are the flags: Typer reads them from the signature, so there are more of
them than elsewhere, and the function is as long as they are many: Typer knows no groups of them.
What they mean stands in `options`, what is done with them in `launch`.
"""

from __future__ import annotations

import os

import typer

from hearth.cli import image_options as image_flag
from hearth.cli import options as flag
from hearth.cli.config_file import Config
from hearth.core.config import (
    DEFAULT_CODES,
    DEFAULT_IMAGES,
    CacheConfig,
    CodesConfig,
    SchedulerConfig,
    WeightCacheConfig,
)

_CACHE = CacheConfig()
_SCHEDULER = SchedulerConfig()


def serve(  # noqa: PLR0913, PLR0917 -- see the module's docstring
    model: flag.Model = None,
    host: flag.Host = "127.0.0.1",
    port: flag.Port = 8000,
    served_model_name: flag.ServedModelName = None,
    reasoning_parser: flag.ReasoningParser = "none",
    max_body_bytes: flag.MaxBodyBytes = 32 << 20,
    request_timeout: flag.RequestTimeout = 0.0,
    shutdown_timeout: flag.ShutdownTimeout = 15.0,
    dtype: flag.Dtype = "auto",
    quantize: flag.Quantize = "none",
    activations: flag.Activations = "auto",
    quantize_group_size: flag.QuantizeGroupSize = DEFAULT_CODES.group_size,
    load_format: flag.LoadFormat = "auto",
    max_model_len: flag.MaxModelLen = None,
    window: flag.Window = None,
    seed: flag.Seed = 0,
    max_num_seqs: flag.MaxNumSeqs = _SCHEDULER.max_num_seqs,
    max_num_batched_tokens: flag.MaxNumBatchedTokens = _SCHEDULER.max_num_batched_tokens,
    max_queued_requests: flag.MaxQueuedRequests = _SCHEDULER.max_queued_requests,
    block_size: flag.BlockSize = _CACHE.block_size,
    enable_prefix_caching: flag.EnablePrefixCaching = _CACHE.enable_prefix_caching,
    speculative: flag.Speculative = "auto",
    kv_cache_memory_bytes: flag.KvCacheMemoryBytes = None,
    kv_cache_dtype: flag.KvCacheDtype = "auto",
    weight_cache_bytes: flag.WeightCacheBytes = None,
    weight_cache_dir: flag.WeightCacheDir = "",
    weight_cache_verify: flag.WeightCacheVerify = False,
    canary: flag.Canary = True,
    stage: flag.Stage = "",
    executor: flag.Executor = "auto",
    threads: flag.Threads = None,
    cpu_bind: flag.CpuBind = "auto",
    numa: flag.Numa = "auto",
    isa: flag.Isa = "auto",
    limit_images: image_flag.LimitImages = None,
    limit_mm_per_prompt: image_flag.LimitMmPerPrompt = "",
    max_pixels: image_flag.MaxPixels = None,
    min_pixels: image_flag.MinPixels = None,
    mm_processor_kwargs: image_flag.MmProcessorKwargs = "",
    image_cache_bytes: image_flag.ImageCacheBytes = DEFAULT_IMAGES.cache_bytes,
    allowed_local_media_path: image_flag.AllowedLocalMediaPath = "",
    allowed_media_domains: image_flag.AllowedMediaDomains = None,
    allow_private_media_addresses: image_flag.AllowPrivateMediaAddresses = False,
    chat_template_content_format: image_flag.ChatTemplateContentFormat = "auto",
    log_level: flag.LogLevel = "info",
    config: Config = None,  # noqa: ARG001 -- read before all others
) -> None:
    """Serve a model over an OpenAI-compatible HTTP API."""
    from hearth.cli import image_settings, settings
    from hearth.cli.launch import configure_logging, launch
    from hearth.cli.main import known_variables

    configure_logging(log_level)
    model_dir = settings.find_model(model)
    served_dir = settings.staged(model_dir, stage) if stage else model_dir
    images = image_settings.ImageFlags(
        limit_images=limit_images,
        limit_mm_per_prompt=limit_mm_per_prompt,
        max_pixels=max_pixels,
        min_pixels=min_pixels,
        mm_processor_kwargs=mm_processor_kwargs,
        image_cache_bytes=image_cache_bytes,
        allowed_local_media_path=allowed_local_media_path,
        allowed_media_domains=allowed_media_domains,
        allow_private_media_addresses=allow_private_media_addresses,
        chat_template_content_format=chat_template_content_format,
    )
    unknown = flag.unknown_variables(os.environ, known_variables())
    engine = settings.EngineFlags(
        dtype=dtype,
        quantize=quantize,
        codes=CodesConfig(activations, quantize_group_size),
        load_format=load_format,
        max_model_len=max_model_len,
        window=window,
        seed=seed,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        max_queued_requests=max_queued_requests,
        block_size=block_size,
        enable_prefix_caching=enable_prefix_caching,
        speculative=speculative,
        kv_cache_memory_bytes=kv_cache_memory_bytes,
        kv_cache_dtype=kv_cache_dtype,
        weight_cache=WeightCacheConfig(weight_cache_dir, weight_cache_bytes, weight_cache_verify),
        executor=executor,
        threads=threads,
        isa=isa,
        cpu_bind=cpu_bind,
        numa=numa,
        images=image_settings.images_config(images),
        canary=canary,
    )
    chosen = settings.ServeSettings(
        engine=settings.engine_config(served_dir, engine),
        model_dir=served_dir,
        names=settings.served_names(model, model_dir, served_model_name),
        host=host,
        port=port,
        max_body_bytes=max_body_bytes,
        shutdown_timeout_s=shutdown_timeout,
        request_timeout_s=request_timeout,
        log_level=log_level,
        warnings=(*unknown, *image_settings.image_warnings(images)),
        media=image_settings.media_config(images),
        separates_reasoning=reasoning_parser != "none",
    )
    raise typer.Exit(launch(chosen))
