-- What lies in each tier is added up by the index alone: the rows hold manifests and places, kilobytes each. In place
-- of the key that was there, under its name and with what it had: what lies in no tier has an entry of it, too.
ALTER TABLE contents DROP KEY contents_by_tier, ADD KEY contents_by_tier (tier, id, size_bytes);
