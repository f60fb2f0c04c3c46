"""Display names: known ones are replaced, all others stay what they are."""

from ptq_classroom.kit.names import network_name, rule_name


def test_range_rules_of_the_package_have_a_name_for_readers():
    assert [rule_name(rule) for rule in ("minmax", "kl", "mse")] == ["min-max", "KL", "MSE"]
    assert rule_name("percentile") == "percentile"
    assert rule_name("p99.9") == "p99.9"


def test_shipped_networks_have_a_name_for_readers():
    assert [network_name(name) for name in ("resnet", "mobilenet", "net")] == [
        "ResNet", "MobileNet", "net",
    ]  # fmt: skip
