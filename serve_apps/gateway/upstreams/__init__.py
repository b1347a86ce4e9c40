"""Other people's OpenAI-compatible APIs as a fallback or overflow, with budgets. Must not know: our own replicas."""
