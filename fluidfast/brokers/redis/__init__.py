"""The broker on Redis or Valkey: alone, with Sentinel, as a Cluster, or over several shards."""
