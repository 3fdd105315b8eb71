/*-------------------------------------------------------------------------
 *
 * answer.c
 *	  Results: rows of our own composite types, and jsonb.
 *
 * Functions that answer with a row return a named type and have no OUT
 * parameters: the executor looks up the columns of a result anew in each
 * execution, several times faster for a named type.  What it finds may have been
 * altered since the extension was created, so it is checked here.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/typcache.h"

#include "answer.h"
#include "compat.h"

static void
answer_check(Oid type, TupleDesc desc, const Oid *columns, int ncolumns)
{
	for (int i = 0; i < Max(desc->natts, ncolumns); i++)
		if (i >= desc->natts || i >= ncolumns ||
			TupleDescAttr(desc, i)->atttypid != columns[i])
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("type \"%s\" is not as extension \"%s\" created it",
							format_type_be(type), "idempotency"),
					 errhint("Undo the change, or use ALTER EXTENSION idempotency UPDATE if the library is newer than the extension.")));
}

/* A row of the type that the called function returns. */
Datum
answer_row(FunctionCallInfo fcinfo, const Oid *columns, int ncolumns,
		   const Datum *values, const bool *isnull)
{
	const int32 no_typmod = -1;
	Oid			type = get_fn_expr_rettype(fcinfo->flinfo);
	TupleDesc	desc;
	HeapTuple	tuple;

	if (!OidIsValid(type))
		type = get_func_rettype(fcinfo->flinfo->fn_oid);
	desc = lookup_rowtype_tupdesc(type, no_typmod);
	answer_check(type, desc, columns, ncolumns);
	tuple = heap_form_tuple(desc, unconstify(Datum *, values),
							unconstify(bool *, isnull));
	ReleaseTupleDesc(desc);
	return HeapTupleGetDatum(tuple);
}

/* Where the called function, which returns a set of that type, puts its rows. */
ReturnSetInfo *
answer_rows(FunctionCallInfo fcinfo, const Oid *columns, int ncolumns)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;

	InitMaterializedSRF(fcinfo, 0);
	answer_check(get_func_rettype(fcinfo->flinfo->fn_oid), rsinfo->setDesc,
				 columns, ncolumns);
	return rsinfo;
}

/* A whole jsonb as a value to be put into another one; NULL as null. */
JsonbValue
answer_jsonb_value(Jsonb *jsonb)
{
	JsonbValue	value = {.type = jbvNull};

	if (jsonb != NULL && !JsonbExtractScalar(&jsonb->root, &value))
	{
		value.type = jbvBinary;
		value.val.binary.data = &jsonb->root;
		value.val.binary.len = VARSIZE(jsonb) - VARHDRSZ;
	}
	return value;
}
