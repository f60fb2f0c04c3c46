"""In production: do live data still fit the calibrated ranges? No labels are needed."""

from ptq_course import ClippingMonitor


def run(quantized, calibration, live, factor=3.0, least=0.001):
    """The values that live data clip `factor` times as often as calibration data did."""
    shares = []
    for batches in (calibration, live):
        with ClippingMonitor(quantized) as monitor:
            for x in batches:
                quantized(x)
        shares.append(monitor.shares())
    usual, now = shares
    alarms = {n: (usual[n], s) for n, s in now.items() if s > max(factor * usual[n], least)}
    print(alarms or "as in calibration: nothing to do")
    return alarms  # not empty: look at the data, then calibrate again with some of them
