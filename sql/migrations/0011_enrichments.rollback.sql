DROP TABLE IF EXISTS enrichments;
