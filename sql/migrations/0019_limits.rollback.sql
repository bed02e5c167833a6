DROP INDEX IF EXISTS sessions_ended_oldest_first;
DROP INDEX IF EXISTS sessions_of_a_user_in_order;
