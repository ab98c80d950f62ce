"""The actors of a segmentation: how many, on which devices, with which batches."""

from dataclasses import dataclass
from typing import Literal, Self

from ray.data import ActorPoolStrategy

from segmodel.runtime import ray_cluster
from segmodel.settings.base import parse_workers
from segmodel.settings.segment import SegmentConfig

CPU_BATCH, GPU_BATCH = 32, 128
COMPILED_FROM = 20_000
"""Slices from which on a GPU makes up for the half minute that torch.compile takes."""


@dataclass(frozen=True)
class Actors:
    """Actors that the connected cluster has room for."""

    use_gpu: bool
    fewest: int
    most: int
    cpus: int | None
    """Of each actor; None on GPUs, because Ray Data warns of actors that ask for both."""
    batch_size: int
    compiled: bool
    """Whether the network is compiled with torch.compile."""

    def __str__(self) -> str:
        number = self.fewest if self.fewest == self.most else f"{self.fewest} to {self.most}"
        return f"actors: {number}, on {'GPUs' if self.use_gpu else 'CPUs'}"

    def pool(self, shards: int) -> ActorPoolStrategy:
        """How Ray Data distributes that many shards among them."""
        # One shard goes through the network while others are read or written, and one or two wait,
        # so that no thread does; of a few shards, though, no actor takes more than its share.
        share = -(-shards // self.most)
        wanted = (4, 6) if self.use_gpu else (3, 4)
        threads, in_flight = (min(number, share) for number in wanted)
        return ActorPoolStrategy(
            min_size=self.fewest,
            max_size=self.most,
            max_tasks_in_flight_per_actor=in_flight,
            max_concurrent_calls_per_actor=threads,
            enable_true_multi_threading=True,
        )


@dataclass(frozen=True)
class ActorRequest:
    """The settings of a request for its actors."""

    gpu: bool
    """They must have GPUs."""
    cpu: bool
    """They must not."""
    workers: tuple[int, int] | None
    """The fewest and the most; None for as many as suit the cluster."""
    batch_size: int | None
    """None for what suits the device."""
    compile: Literal["auto", "on", "off"]

    @classmethod
    def of(cls, config: SegmentConfig) -> Self:
        """What the settings say."""
        workers = None if config.workers is None else parse_workers(config.workers)
        return cls(config.gpu, config.cpu, workers, config.batch_size, config.compile)

    def resolve(self, slices: int) -> Actors:
        """The actors on the cluster that this process is connected to.

        Args:
            slices: of the whole archive, so that a run that goes on does as it did before.

        Raises:
            ConfigError: the cluster has no GPU that is demanded, or no room for the fewest.
        """
        fewest = 1 if self.workers is None else self.workers[0]
        use_gpu = ray_cluster.should_use_gpu(self.gpu, self.cpu, fewest)
        low, high = self.workers or ray_cluster.default_workers(use_gpu)
        compiled = use_gpu and slices >= COMPILED_FROM
        return Actors(
            use_gpu=use_gpu,
            fewest=low,
            most=high,
            cpus=None if use_gpu else ray_cluster.cpus_per_worker(high),
            batch_size=self.batch_size or (GPU_BATCH if use_gpu else CPU_BATCH),
            compiled=compiled if self.compile == "auto" else self.compile == "on",
        )
