"""Stage two: one room per runtime, its SDK imported inside functions only."""
