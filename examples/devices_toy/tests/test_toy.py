from devices.testing.conformance import Conformance


class TestConformance(Conformance):
    backend = "toy"
