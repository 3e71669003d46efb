"""The library inside of others: Lightning, scikit-learn. Each module needs the package of its name."""
