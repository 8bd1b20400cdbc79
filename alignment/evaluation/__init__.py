"""What the votes say: win rates, ratings, metrics and the report, each figure with its interval and its n."""
