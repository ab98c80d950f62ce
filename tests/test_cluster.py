"""The cluster's configuration."""

from pathlib import Path

import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parent.parent


def test_cluster_yaml_passes_rays_own_validation() -> None:
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    prepared = prepare_config(config)
    validate_config(prepared)
    assert prepared["available_node_types"]["gpu"]["min_workers"] == 0
    assert prepared["available_node_types"]["gpu"]["resources"]["GPU"] == 1
    assert "InstanceMarketOptions" not in prepared["available_node_types"]["head"]["node_config"]
    assert (ROOT / prepared["file_mounts"]["/home/ubuntu/requirements.lock"]).exists()
