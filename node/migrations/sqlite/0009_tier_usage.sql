-- What lies in each tier is added up by the index alone: the rows hold manifests and places, kilobytes each.
DROP INDEX contents_by_tier;
CREATE INDEX contents_by_tier ON contents (tier, id, size_bytes) WHERE tier IS NOT NULL;
