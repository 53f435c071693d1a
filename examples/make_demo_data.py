"""Make gpubce/data/flights.npz, the predictions that ``gpubce evaluate --demo`` evaluates.

They are a random sample of the test predictions of examples/flights.py; gpubce/data/README.md says more.
"""

from pathlib import Path

import flights
import numpy as np

ITERATIONS = 300
ROWS = 20_000  # Random float64 mantissas hardly compress: these take 160 kB.
SEED = 2013
DEMO = Path(__file__).parent.parent / "gpubce" / "data" / "flights.npz"


def main() -> None:
    """Train, predict, and write the sample."""
    probabilities, targets, _ = flights.predict_test_flights(ITERATIONS)
    # Sorted: the sample keeps the order of the flights.
    chosen = np.sort(np.random.default_rng(SEED).choice(len(targets), ROWS, replace=False))
    np.savez_compressed(DEMO, prediction=probabilities[chosen], target=targets[chosen])
    print(f"{DEMO}: {ROWS:,} of {len(targets):,} predictions, {DEMO.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
