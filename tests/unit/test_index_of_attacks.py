"""Which tests stand against which known attack, and which known error of such services."""

import re
from pathlib import Path
from typing import Final

import pytest

THREATS: Final = {
    "another user's code, referrals, sessions": """
        test_the_session_of_another_user_is_as_if_it_were_not_there
        test_codes_are_of_their_owner_alone
        test_nobody_else_sees_them_whether_there_are_any_or_not
        test_a_user_may_do_none_of_this_and_learns_nothing
        test_a_referral_does_not_see_the_referrer_list""",
    "credential stuffing, in parallel": """
        test_attempts_are_counted_before_a_password_is_hashed
        test_logins_are_limited_for_an_account_known_or_not
        test_guessing_from_elsewhere_locks_nobody_out""",
    "enumeration by words or by time": """
        test_wrong_credentials_are_refused_with_the_same_words
        test_an_unknown_email_costs_a_hash_too
        test_an_unknown_email_and_one_without_a_code_get_the_same_answer
        test_asking_for_a_mail_is_answered_alike
        test_registering_is_answered_alike_where_emails_are_confirmed
        test_after_the_cost_was_changed_nobody_has_an_account_by_the_time_it_takes""",
    "replay of an authorization code": """
        test_of_twenty_parallel_redemptions_of_a_code_one_succeeds
        test_a_replayed_code_ends_what_it_gave
        test_who_has_seen_a_code_cannot_sign_its_user_out""",
    "theft of a refresh token": """
        test_twenty_parallel_refreshes_give_one_child
        test_an_older_refresh_token_ends_the_session_and_its_live_leaf
        test_a_token_used_twice_ends_the_session_at_once""",
    "tokens of a disabled or changed user": """
        test_a_disabled_user_is_out_at_once
        test_a_new_password_ends_the_other_sessions""",
    "PKCE left out or downgraded": """
        test_a_request_without_sound_pkce_gets_no_page
        test_pkce_cannot_be_taken_out_of_the_page
        test_a_code_is_not_redeemed_without_its_verifier""",
    "open redirect": """
        test_nobody_is_sent_to_an_address_that_is_not_registered""",
    "login CSRF, mix-up of issuers": """
        test_a_callback_in_another_browser_is_refused_and_ends_nothing
        test_an_issuer_that_does_not_name_itself_need_not_but_never_names_another""",
    "forged or confused JWTs": """
        test_what_is_not_ours_is_refused
        test_other_tokens_are_no_access_tokens
        test_a_forged_id_token_signs_nobody_in
        test_what_is_no_refresh_token_is_refused""",
    "a revoked token lives on": """
        test_after_signing_out_the_tokens_do_not_work_anywhere
        test_the_service_starts_without_redis_and_gives_the_same_answers""",
    "mass assignment, too much shown": """
        test_a_member_that_is_not_the_callers_to_set_is_refused
        test_members_that_nobody_knows_are_named
        test_nothing_about_a_password_is_shown_or_stored
        test_a_problem_says_nothing_that_the_caller_did_not_know
        test_nothing_else_can_be_changed""",
    "resource exhaustion": """
        test_of_500_sign_ins_at_once_some_are_refused_and_nobody_else_waits
        test_where_the_queue_is_full_a_hash_is_refused_at_once
        test_a_body_over_16_kib_is_too_large
        test_brackets_deeper_than_the_stack_are_refused
        test_junk_in_a_query_is_named_or_ignored""",
    "privilege beyond scope or role": """
        test_a_token_calls_the_routes_of_its_scope_and_no_other
        test_who_is_no_admin_any_more_may_not_at_once""",
    "referral farming": """
        test_an_email_that_registers_10_times_by_code_counts_once
        test_an_erased_email_is_not_referred_again
        test_it_cannot_be_broken
        test_generated_codes_have_10_characters_and_no_look_alikes
        test_registrations_are_limited_for_an_address""",
    "server-side request forgery": """
        test_a_redirect_is_not_followed
        test_a_description_that_leads_astray_is_not_followed
        test_an_issuer_has_an_address_that_is_safe_to_call
        test_nothing_is_sent_to_what_is_not_public
        test_no_connection_is_made_to_a_literal
        test_no_connection_is_made_where_a_name_leads_inside
        test_a_name_that_leads_outside_and_then_inside_is_not_followed
        test_no_webhook_follows_a_redirect
        test_an_answer_is_kept_nowhere""",
    "forged and repeated webhooks": """
        test_a_webhook_is_verified_by_the_reference_library
        test_libraries_for_javascript_verify_our_webhooks
        test_once_a_rotation_is_answered_the_new_secret_alone_will_do""",
    "a receiver that hangs stops all": """
        test_half_of_ten_hang_and_the_others_wait_no_longer_than_twice_as_long
        test_a_backlog_of_one_endpoint_does_not_hold_up_the_others""",
    "deliveries go on after disabling": """
        test_once_disabling_is_answered_no_attempt_follows
        test_who_disables_an_endpoint_sees_a_claim_that_is_being_made""",
    "misconfiguration": """
        test_without_its_secrets_serve_refuses_to_start
        test_every_answer_is_safe_in_a_browser_and_has_an_id
        test_scripts_of_allowed_origins_may_read_all_but_the_page
        test_a_page_and_what_it_loads_is_served_under_a_strict_policy""",
    "forgotten routes": """
        test_it_documents_every_route_and_no_other
        test_every_route_of_the_api_is_public_or_has_its_scope""",
    "hostile services outside": """
        test_an_issuer_in_trouble_is_503_and_soon
        test_what_was_compressed_unasked_is_not_unpacked
        test_a_hanging_issuer_holds_up_nobody_else
        test_a_redirect_is_not_followed""",
    "abuse of resetting and confirming": """
        test_of_many_who_send_a_token_at_once_one_is_first
        test_a_token_is_good_for_ten_minutes
        test_a_token_is_good_for_its_purpose_alone
        test_the_database_never_holds_a_token
        test_a_link_leads_where_the_settings_say_whatever_the_request_claims
        test_a_forgotten_password_is_reset""",
    "the sign-in page: framed, forged, scripted": """
        test_no_other_site_can_frame_the_page
        test_another_site_cannot_submit_the_form
        test_a_form_that_this_browser_was_not_given_grants_nothing
        test_hostile_texts_are_only_text_on_the_page""",
    "secrets in logs and errors": """
        test_no_line_holds_a_secret_or_an_email
        test_neither_does_the_traceback_of_a_failure""",
    "500s from hostile bytes": """
        test_credentials_of_any_bytes_are_refused
        test_a_nasty_text_is_refused_and_found_nowhere
        test_what_is_no_form_is_refused
        test_junk_in_an_address_is_not_found
        test_json_that_is_no_object_is_refused
        test_another_media_type_is_not_supported
        test_chunks_that_add_up_to_more_than_16_kib_are_too_large
        test_a_member_that_is_there_twice_is_named""",
    "two live codes or two accounts by race": """
        test_one_wins_and_the_others_are_told_why
        test_of_20_accounts_of_one_email_at_once_one_is_made
        test_a_chosen_code_that_another_holds_is_refused""",
    "an expired code blocks a new one": """
        test_an_expired_code_is_over_and_not_in_the_way
        test_an_expired_code_lets_one_of_20_new_ones_in""",
    "an old code from the cache": """
        test_after_the_answer_to_a_write_no_process_gives_the_old_code
        test_readers_that_hammer_on_two_processes_never_see_an_old_code""",
    "hashing on the event loop": """
        test_hashes_run_beside_the_event_loop
        test_requests_without_a_password_do_not_wait_for_those_with_one""",
    "passwords cut at 72 bytes or at NUL": """
        test_a_password_is_right_to_the_last_character
        test_any_other_password_is_accepted_and_good_as_a_whole""",
    "numbers, pages and times out of range": """
        test_a_wish_of_any_size_is_granted_or_refused
        test_junk_in_a_query_is_named_or_ignored
        test_what_is_no_moment_is_refused
        test_an_expiry_is_read_with_its_zone_and_told_in_utc
        test_days_outside_are_refused
        test_a_cursor_of_any_place_in_time_is_harmless""",
    "two spellings of an email address, two accounts": """
        test_an_email_that_is_taken_is_taken_in_any_case
        test_two_spellings_of_a_domain_are_one_email""",
    "a verifier of email addresses is down, and nobody can register": """
        test_while_everything_outside_hangs_registering_goes_on_and_is_made_up_for
        test_what_goes_wrong_is_tried_again""",
    "Redis is down, and everything is a 500": """
        test_the_service_starts_without_redis_and_gives_the_same_answers
        test_redis_may_go_in_the_middle_of_the_story""",
    "the account is made, the referral is lost": """
        test_an_unusable_code_makes_no_account
        test_registrations_beside_the_erasure_of_their_referrer_are_whole_or_refused""",
    "a GET that changes something": """
        test_no_get_changes_anything""",
    "an account is kept by whoever registers its address first": """
        test_confirming_makes_exactly_the_registration_whose_token_comes_back
        test_a_queue_of_mails_that_is_late_changes_nothing
        test_of_two_claims_confirmed_at_once_one_becomes_the_account
        test_a_claim_that_is_made_beside_a_confirmation_never_becomes_a_second_account
        test_the_owner_who_registers_gets_the_account_of_a_squatter_without_what_is_on_it""",
    "a code in circulation is taken over": """
        test_however_a_code_ended_nobody_else_gets_its_name
        test_a_name_does_not_keep_the_person_whose_account_is_erased
        test_a_code_is_found_however_it_was_read
        test_the_release_before_is_bound_by_names_too
        test_who_comes_second_to_a_name_waits_for_the_first
        test_names_that_are_contested_go_to_their_oldest_owner""",
    "what was made with another's address counts": """
        test_the_first_reset_of_an_unconfirmed_account_ends_what_a_stranger_has_put_there
        test_a_use_and_a_place_in_the_list_come_with_the_confirmation
        test_what_becomes_of_a_code_between_registering_and_confirming
        test_of_claims_with_one_code_confirmed_at_once_max_uses_have_the_referrer
        test_nobody_makes_a_code_before_confirming""",
    "a client reads everybody": """
        test_a_client_for_users_may_do_nothing_for_itself
        test_a_client_has_for_itself_what_the_operator_said""",
    "a squatter is promoted": """
        test_who_has_not_confirmed_the_address_is_not_promoted
        test_promotion_ends_what_a_stranger_may_hold
        test_nobody_is_promoted_who_takes_the_address_away_meanwhile""",
    "a change of address outlives its session": """
        test_a_change_ends_with_the_session_that_asked_for_it
        test_a_change_whose_mail_is_late_ends_with_the_session_too
        test_a_sign_out_that_is_under_way_is_waited_for
        test_the_old_address_gets_the_account_back
        test_a_change_after_the_change_is_undone_with_it
        test_an_account_registered_with_the_address_meanwhile_is_not_in_the_way""",
    "an identity linked by a thief stays": """
        test_linking_tells_the_owner_and_ends_the_other_sessions
        test_they_go_with_the_address_they_came_with
        test_a_verified_issuer_takes_an_account_from_who_has_never_confirmed_it
        test_of_two_that_are_cut_off_at_once_one_stays
        test_a_linked_identity_is_cut_off_and_not_linked_again""",
    "Redis remembers erased users": """
        test_redis_learns_no_email_and_no_address
        test_it_is_forgotten_when_redis_was_away_as_the_account_was_erased""",
    "headers tell who has an account": """
        test_windows_of_users_and_emails_are_not_shown
        test_logins_are_limited_for_an_account_known_or_not""",
    "a refusal tells who was referred before": """
        test_who_was_referred_before_comes_back_without_a_referrer_and_nobody_learns_it""",
    "the tokens of a deleted client live on": """
        test_with_a_client_all_that_it_was_given_ends
        test_what_a_client_has_lost_no_token_keeps
        test_a_client_is_changed_while_its_tokens_are_given_and_none_is_left""",
    "a signed-in user exhausts the service": """
        test_what_a_user_changes_is_limited_in_all_sessions_together
        test_of_more_than_100_sessions_the_oldest_ends
        test_20_000_sessions_end_in_small_steps_and_look_ups_go_on_meanwhile
        test_of_more_than_1_000_keys_of_a_user_the_oldest_is_forgotten
        test_what_a_user_was_refused_is_erased_with_the_account""",
    "an address that is no header": """
        test_what_cannot_stand_in_a_header_is_refused
        test_a_mail_that_cannot_be_written_is_given_up_at_once_in_one_line""",
    "the developers' mailbox answers strangers": """
        test_it_does_not_answer_for_a_name_that_others_can_point_here
        test_it_does_not_answer_another_machine
        test_scripts_of_other_origins_never_read_it
        test_nobody_else_on_the_machine_reads_its_files""",
    "guesses lock the owner out": """
        test_guessing_from_elsewhere_locks_nobody_out
        test_the_pause_between_guesses_doubles_known_or_not
        test_parallel_guesses_are_counted_before_they_are_known_to_be_wrong
        test_a_mailbox_full_of_other_mails_has_room_for_a_reset""",
    "a mailbox is filled": """
        test_a_mailbox_gets_3_mails_an_hour_and_10_a_day_and_some_are_left_for_resets
        test_addresses_of_one_mailbox_count_together
        test_workers_in_parallel_send_no_more_than_one_alone""",
    "a referral to oneself": """
        test_another_address_of_the_referrers_mailbox_is_flagged_and_counts
        test_of_referrals_of_one_mailbox_at_once_one_is_without_a_flag""",
    "nobody can say who did what": """
        test_a_failed_sign_in_is_one_line_that_names_nobody
        test_every_event_has_one_line_and_the_owners_one_row""",
    "a cookie within another, a form of another site": """
        test_a_cookie_that_stands_within_another_or_twice_is_none
        test_a_form_of_another_site_grants_nothing_though_it_knows_the_cookie""",
    "metrics past a proxy's rule": """
        test_no_other_spelling_passes_by_a_proxy_that_hides_them""",
    "email addresses in PostgreSQL's log": """
        test_no_email_address_is_in_the_log_of_postgresql""",
    "a foreign client introspects": """
        test_a_client_learns_of_its_own_tokens_alone
        test_a_token_of_the_services_own_sign_in_is_no_clients_business""",
    "an application takes the account away": """
        test_an_application_takes_nothing_away_from_its_user
        test_an_application_ends_its_own_session_and_no_other""",
    "passwords that anyone guesses": """
        test_what_attackers_try_first_is_refused
        test_a_repetition_counts_once""",
    "a stranger's idempotency key": """
        test_a_strangers_key_neither_blocks_nor_replays""",
    "the last admin goes": """
        test_the_last_one_stays_and_nothing_has_changed
        test_of_two_who_go_at_once_one_is_left""",
}


@pytest.fixture(scope="module")
def names() -> set[str]:
    """The names of all tests, in whatever file they are."""
    files = Path(__file__).parents[1].rglob("test_*.py")
    found = (re.findall(r"(?m)^(?:async )?def (test_\w+)", file.read_text()) for file in files)
    return {name for of_one_file in found for name in of_one_file}


@pytest.mark.parametrize("threat", THREATS)
def test_each_threat_has_its_tests(threat: str, names: set[str]) -> None:
    named = THREATS[threat].split()
    assert named
    assert set(named) <= names
