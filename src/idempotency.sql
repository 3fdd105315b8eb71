\echo Use "CREATE EXTENSION idempotency" to load this file. \quit

