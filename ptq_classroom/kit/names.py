"""Range rules and networks as figures and sentences call them."""

RULES = {"minmax": "min-max", "kl": "KL", "mse": "MSE"}
NETWORKS = {"resnet": "ResNet", "mobilenet": "MobileNet"}


def rule_name(rule: str) -> str:
    """The name of a range rule for readers: "KL" for "kl"."""
    return RULES.get(rule, rule)


def network_name(network: str) -> str:
    """The name of a shipped network for readers: "ResNet" for "resnet"."""
    return NETWORKS.get(network, network)
